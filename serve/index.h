// An index of `livetrain index`: which items have the largest inner product with a user's vectors, of those on the air.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace serve {

class Index;

// Which items are on the air: all but some, or only some. By keys: an item's id, or the xxh64 of one that is a string.
struct Air {
    static constexpr size_t KEPT = 100'000;

    std::unordered_map<int64_t, int64_t> keys;  // and the number of the change that has told it
    bool only = false;
    int64_t changes = 0;

    // What is off the air and not in the index may come with the next one; of more than KEPT such keys those that were
    // told first are forgotten.
    Air changed(const std::vector<int64_t>& on, const std::vector<int64_t>& off, const Index& index) const;
};

class Index {
  public:
    struct Found {
        std::vector<int64_t> items;  // the best first
        std::vector<std::string> names;  // of items that are strings: these
        std::vector<float> scores;
    };

    // folder: of a version, whose files are as its manifest says. Raises std::runtime_error.
    explicit Index(const std::filesystem::path& folder);
    ~Index();

    struct Asked {
        int64_t count = 0;  // of items
        std::vector<int64_t> exclude;
    };

    // Of several users at once, as one multiplication of the items by all of them takes little longer than by one.
    // users: (B, width), or (B, K, width) of K interests, of which an item's product is the largest; asked: of each user;
    // air: all is found without.
    std::vector<Found> search(const at::Tensor& users, const std::vector<Asked>& asked, const std::shared_ptr<const Air>& air);

    bool strings() const { return strings_; }
    bool holds(int64_t key) const { return places_.count(key) > 0; }
    size_t items() const { return keys_.size(); }
    const std::string& model() const { return model_; }  // the xxh64 of the manifest of the export that made the vectors

  private:
    struct Mask;   // of places
    struct Graph;  // of faiss

    std::shared_ptr<const Mask> mask_of(const std::shared_ptr<const Air>& air);
    Found best(std::vector<std::pair<float, int64_t>> places, const Asked& asked) const;

    std::vector<int64_t> keys_;
    std::vector<std::string> names_;  // of keys that are strings
    std::unordered_map<int64_t, int64_t> places_;
    bool strings_ = false;
    std::string model_;
    at::Tensor vectors_;  // (N, width) of an exact index
    std::unique_ptr<Graph> graph_;
    std::mutex changing_;
    std::shared_ptr<const Mask> mask_;
};

}  // namespace serve
