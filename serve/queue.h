// A bounded queue of work with a deadline, and the threads that do it.

#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace serve {

class Queue {
  public:
    enum class Outcome { done, full, late, stopped };

    // threads: that work; limit: jobs that wait at most; deadline: within which work begins, or never.
    Queue(size_t threads, size_t limit, std::chrono::milliseconds deadline)
        : threads_(threads), limit_(limit), deadline_(deadline) {
        for (size_t number = 0; number < threads; ++number) workers_.emplace_back([this] { work(); });
    }
    ~Queue() { stop(); }

    // Waits until a thread has done the work, or says why none has begun it. The work must not throw.
    Outcome run(std::function<void()> work) {
        const auto until = std::chrono::steady_clock::now() + deadline_;
        std::unique_lock lock(mutex_);
        if (stopping_) return Outcome::stopped;
        if (busy_ + waiting_.size() >= threads_ + limit_) return Outcome::full;
        const auto job = std::make_shared<Job>();
        job->work = std::move(work);
        waiting_.push_back(job);
        more_.notify_one();
        if (!job->moved.wait_until(lock, until, [&] { return job->state != State::waits; })) {
            std::erase(waiting_, job);
            return Outcome::late;
        }
        job->moved.wait(lock, [&] { return job->state == State::done; });
        return Outcome::done;
    }

    size_t length() const {
        const std::lock_guard lock(mutex_);
        return waiting_.size();
    }

    // Takes nothing more, does what waits, and ends the threads.
    void stop() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        more_.notify_all();
        for (auto& worker : workers_)
            if (worker.joinable()) worker.join();
    }

  private:
    enum class State { waits, begun, done };
    struct Job {
        std::function<void()> work;
        State state = State::waits;
        std::condition_variable moved;
    };

    void work() {
        std::unique_lock lock(mutex_);
        while (true) {
            more_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
            if (waiting_.empty()) return;
            const auto job = waiting_.front();
            waiting_.pop_front();
            job->state = State::begun;
            ++busy_;
            job->moved.notify_all();
            lock.unlock();
            job->work();
            lock.lock();
            --busy_;
            job->state = State::done;
            job->moved.notify_all();
        }
    }

    const size_t threads_, limit_;
    const std::chrono::milliseconds deadline_;
    mutable std::mutex mutex_;
    std::condition_variable more_;
    std::deque<std::shared_ptr<Job>> waiting_;
    size_t busy_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> workers_;
};

}  // namespace serve
