// What is counted of requests, and their times, for Prometheus.

#pragma once

#include <array>
#include <chrono>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>

namespace serve {

// Seconds in classes whose ends rise by half: .1 ms, .15 ms ... 43 s, and above.
class Histogram {
  public:
    static constexpr size_t CLASSES = 33;
    static double end(size_t place) {
        double end = 1e-4;
        for (; place > 0; --place) end *= 1.5;
        return end;
    }

    void add(double seconds) {
        size_t place = 0;
        for (double end = 1e-4; place < CLASSES && seconds > end; end *= 1.5) ++place;
        ++counts_[place], ++count_, sum_ += seconds;
    }
    void add(const Histogram& other) {
        for (size_t place = 0; place <= CLASSES; ++place) counts_[place] += other.counts_[place];
        count_ += other.count_, sum_ += other.sum_;
    }
    // The time that a share of all took at most: within its class by a straight line.
    double quantile(double share) const {
        const double wanted = share * count_;
        double before = 0;
        for (size_t place = 0; place < CLASSES; before += counts_[place++]) {
            if (counts_[place] == 0 || before + counts_[place] < wanted) continue;
            const double begin = place == 0 ? 0 : end(place - 1);
            return begin + (end(place) - begin) * (wanted - before) / counts_[place];
        }
        return count_ == 0 ? 0 : end(CLASSES - 1);
    }
    uint64_t at(size_t place) const { return counts_[place]; }
    uint64_t count() const { return count_; }
    double sum() const { return sum_; }

  private:
    std::array<uint64_t, CLASSES + 1> counts_{};
    uint64_t count_ = 0;
    double sum_ = 0;
};

class Metrics {
  public:
    // model: of the config, or "rank" or "retrieve"; status: of HTTP.
    void add(const std::string& model, int status, double seconds) {
        const std::lock_guard lock(mutex_);
        ++codes_[{model, status}];
        if (status != 200) return;
        auto& times = times_[model];
        turn(times);
        times.all.add(seconds), times.now.add(seconds);
    }

    // So many requests were answered together.
    void joined(const std::string& model, size_t requests) {
        const std::lock_guard lock(mutex_);
        auto& counts = joined_[model];
        size_t place = 0;
        while (place < SIZES && requests > (size_t{1} << place)) ++place;
        ++counts[place], counts.back() += requests;
    }

    void write(std::ostream& out) {
        const std::lock_guard lock(mutex_);
        head(out, "requests_total", "counter", "Requests, by model and status of HTTP.");
        for (const auto& [of, count] : codes_)
            out << "livetrain_requests_total{model=\"" << of.first << "\",code=\"" << of.second << "\"} " << count << "\n";
        head(out, "request_seconds", "histogram", "Time of answered requests, from their arrival on.");
        for (const auto& [model, times] : times_) {
            const auto name = "livetrain_request_seconds";
            uint64_t so_far = 0;
            for (size_t place = 0; place < Histogram::CLASSES; ++place) {
                so_far += times.all.at(place);
                out << name << "_bucket{model=\"" << model << "\",le=\"" << Histogram::end(place) << "\"} " << so_far << "\n";
            }
            out << name << "_bucket{model=\"" << model << "\",le=\"+Inf\"} " << times.all.count() << "\n"
                << name << "_sum{model=\"" << model << "\"} " << times.all.sum() << "\n"
                << name << "_count{model=\"" << model << "\"} " << times.all.count() << "\n";
        }
        head(out, "joined_requests", "histogram", "How many requests for items were answered together.");
        for (const auto& [model, counts] : joined_) {
            const auto name = "livetrain_joined_requests";
            uint64_t so_far = 0;
            for (size_t place = 0; place < SIZES; ++place) {
                so_far += counts[place];
                out << name << "_bucket{model=\"" << model << "\",le=\"" << (1 << place) << "\"} " << so_far << "\n";
            }
            so_far += counts[SIZES];
            out << name << "_bucket{model=\"" << model << "\",le=\"+Inf\"} " << so_far << "\n"
                << name << "_sum{model=\"" << model << "\"} " << counts.back() << "\n"
                << name << "_count{model=\"" << model << "\"} " << so_far << "\n";
        }
        for (const auto& [name, share] : {std::pair("p50", .5), std::pair("p99", .99)}) {
            head(out, std::string("request_") + name + "_seconds", "gauge",
                 "Of the requests of this minute and the one before, so many take no longer.");
            for (auto& [model, times] : times_) {
                turn(times);
                Histogram recent = times.before;
                recent.add(times.now);
                out << "livetrain_request_" << name << "_seconds{model=\"" << model << "\"} " << recent.quantile(share)
                    << "\n";
            }
        }
    }

    static void head(std::ostream& out, const std::string& name, const char* kind, const char* what) {
        out << "# HELP livetrain_" << name << " " << what << "\n# TYPE livetrain_" << name << " " << kind << "\n";
    }

  private:
    struct Times {
        Histogram all, before, now;
        int64_t minute = 0;
    };

    static void turn(Times& times) {
        const auto since = std::chrono::steady_clock::now().time_since_epoch();
        const auto minute = std::chrono::duration_cast<std::chrono::minutes>(since).count();
        if (minute == times.minute) return;
        times.before = minute == times.minute + 1 ? times.now : Histogram();
        times.now = Histogram(), times.minute = minute;
    }

    static constexpr size_t SIZES = 5;  // 1, 2, 4, 8, 16 requests, and above

    std::mutex mutex_;
    std::map<std::pair<std::string, int>, uint64_t> codes_;
    std::map<std::string, std::array<uint64_t, SIZES + 2>> joined_;  // by size; the last: requests in all
    std::map<std::string, Times> times_;
};

}  // namespace serve
