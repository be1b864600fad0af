// A model that the server serves: loaded, kept up to date, and what is to be said of it.

#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "config.h"
#include "deltas.h"
#include "index.h"
#include "store.h"
#include "wire.h"

namespace serve {

// Of one base: what a request has to give, and of a model that retrieves its index.
struct About {
    wire::Signature signature;
    store::Reads reads;
    std::set<std::string> probabilities;  // scores that are such
    std::shared_ptr<Index> index;
};

// The index that is published now was not made of the towers that are to be served.
struct NotYet : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Model {
  public:
    // Loads what is published; raises std::runtime_error where it cannot.
    Model(std::string name, ModelConfig config);

    // Takes in what was published since, where that is due; of one thread. What fails is kept, to be said.
    void refresh(std::chrono::milliseconds every);

    // Does some work with one state; `about` of it must be the one that the request was read by, or nothing is done and
    // false returned.
    template <typename Work>
    bool use(const std::shared_ptr<const About>& about, Work&& work) {
        return served_->use([&](const Served::State& state) {
            if (state.beside != about) return false;
            work(state);
            return true;
        });
    }
    std::shared_ptr<const About> about();
    wire::Stamp stamp(const Served::State& state) const;

    // Of retrieve: changes what is on the air. Raises wire::BadRequest.
    void change_air(const nlohmann::json& change);
    // Returns what is on the air; raises wire::BadRequest with 503 where that has to be told first.
    std::shared_ptr<const Air> air() const;

    struct Status {
        std::string version, failed, waits;  // why the last load failed; what is waited for
        int64_t fence = 0, delta = 0, swaps = 0, failures = 0;
        int64_t off = 0;  // items that are known to be off the air, in the index or not
        double age = 0;  // seconds since what is served was written
    };
    Status status();

    const std::string name;
    const ModelConfig config;

  private:
    std::shared_ptr<const void> complete(const Served::State& state);

    std::unique_ptr<Served> served_;
    std::string index_seen_;  // the pointer of the index that is served
    std::string tried_;       // the pointers that could not be taken in, and when they are tried again
    std::chrono::steady_clock::time_point again_{};
    std::chrono::milliseconds wait_{0};
    mutable std::mutex mutex_;  // of what follows
    std::string failed_, waits_;
    int64_t swaps_ = 0, failures_ = 0;
    std::shared_ptr<const Air> air_;
};

}  // namespace serve
