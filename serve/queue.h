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

template <typename Item>
class Queue {
  public:
    enum class Outcome { done, full, late, stopped };
    using Work = std::function<void(const std::vector<Item*>&)>;

    // threads: that work; limit: items that wait at most; deadline: within which work begins, or never; together: how
    // many items are worked on at once, at most. The work must not throw.
    Queue(size_t threads, size_t limit, std::chrono::milliseconds deadline, size_t together, Work work)
        : threads_(threads), limit_(limit), together_(together), deadline_(deadline), work_(std::move(work)) {
        for (size_t number = 0; number < threads; ++number) workers_.emplace_back([this] { run(); });
    }
    ~Queue() { stop(); }

    // Waits until a thread has worked on the item, or says why none has begun. with: a thread that begins with an item
    // takes those that wait with the same one along, and waits for none; null: by itself.
    Outcome run(Item& item, const void* with) {
        const auto until = std::chrono::steady_clock::now() + deadline_;
        std::unique_lock lock(mutex_);
        if (stopping_) return Outcome::stopped;
        if (busy_ + waiting_.size() >= threads_ + limit_) return Outcome::full;
        Job job{&item, with};
        waiting_.push_back(&job);
        more_.notify_one();
        if (!job.moved.wait_until(lock, until, [&] { return job.state != State::waits; })) {
            std::erase(waiting_, &job);
            return Outcome::late;
        }
        job.moved.wait(lock, [&] { return job.state == State::done; });
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
        Item* item;
        const void* with;
        State state = State::waits;
        std::condition_variable moved{};
    };

    // The one that has waited longest, and those that go with it.
    std::vector<Job*> next() {
        std::vector<Job*> jobs{waiting_.front()};
        waiting_.pop_front();
        if (!jobs[0]->with) return jobs;
        std::erase_if(waiting_, [&](Job* job) {
            const bool goes = jobs.size() < together_ && job->with == jobs[0]->with;
            if (goes) jobs.push_back(job);
            return goes;
        });
        return jobs;
    }

    void run() {
        std::unique_lock lock(mutex_);
        while (true) {
            more_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
            if (waiting_.empty()) return;
            const auto jobs = next();
            std::vector<Item*> items;
            for (auto* job : jobs) {
                items.push_back(job->item);
                job->state = State::begun;
                job->moved.notify_all();
            }
            ++busy_;
            lock.unlock();
            work_(items);
            lock.lock();
            --busy_;
            for (auto* job : jobs) {
                job->state = State::done;
                job->moved.notify_all();
            }
        }
    }

    const size_t threads_, limit_, together_;
    const std::chrono::milliseconds deadline_;
    const Work work_;
    mutable std::mutex mutex_;
    std::condition_variable more_;
    std::deque<Job*> waiting_;
    size_t busy_ = 0;  // threads
    bool stopping_ = false;
    std::vector<std::thread> workers_;
};

}  // namespace serve
