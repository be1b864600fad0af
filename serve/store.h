// The feature store: what a model reads of a user and of candidates, as its samples had it at the moment of a request.
//
// A store (docs/guide/feature-store.md has its bytes) holds states and events with their times; what they say at a
// moment is worked out here as trainers/data/sources/events/known.py does for the samples. A test compares the two.
// Needs nlohmann-json, and liblmdb with LIVETRAIN_LMDB, hiredis with LIVETRAIN_REDIS.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "wire.h"

namespace store {

// The store does not answer, or was never filled. What to do without it is the caller's affair.
struct Down : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A map from text to bytes.
class Place {
  public:
    virtual ~Place() = default;
    // The values of some keys as they are in one moment, nothing of a key that is not there. Raises Down.
    virtual std::vector<std::optional<std::string>> get(const std::vector<std::string>& keys) = 0;
};

// A folder of LMDB, or redis://HOST:PORT/DB. Raises std::runtime_error: there is none, or Redis is not built in.
std::unique_ptr<Place> open(const std::string& place);

// Which columns of the samples the features of a model read, from its signature.json.
class Reads {
  public:
    // Raises std::runtime_error: this is no signature. An export from before it named columns reads none.
    static Reads parsed(std::string_view signature);
    // Of models that answer one request together.
    Reads with(const Reads& other) const;

    // And the ids of some columns, where no feature is one: a store goes by them.
    Reads with(const std::vector<std::string>& ids) const;

    struct Feature {
        std::string name, type, column;
        std::string other;  // a second column: until when an age counts, or the weights of a bag's ids; "" of none
        int64_t width = 1, ticks = 1;  // of columns of times: how many make a second
    };
    std::vector<Feature> features;  // that a store can fill: not those made of others, nor ids with times or vectors
};

class Store {
  public:
    explicit Store(std::unique_ptr<Place> place);
    ~Store();

    // Fills features of a signature that a request lacks and that the store knows, and returns their names. The
    // request has the ids of the user and, of one to rank, of the candidates and for what is known of them of their
    // authors; what it brings stays as it is. ms: the moment, since 1970. Raises Down.
    std::vector<std::string> fill(wire::Request& request, const wire::Signature& signature, const Reads& reads,
                                  int64_t ms);

    // The columns of the user's, the item's and the author's id; none before the store has answered.
    std::vector<std::string> ids();

    // The column whose id a request would need for more of its features to be filled, after `fill`: the user's, the
    // item's or the author's. "" where nothing is lacking, or it has all three.
    std::string needs(const wire::Request& request, const wire::Signature& signature, const Reads& reads) const;

  private:
    struct Generation;
    std::shared_ptr<const Generation> generation();
    std::shared_ptr<const Generation> learned(const std::optional<std::string>& said);

    std::unique_ptr<Place> place_;
    mutable std::mutex mutex_;
    std::shared_ptr<const Generation> generation_;
};

}  // namespace store
