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

// Which items are on the air: all but some, or only some. By keys: an item's id, or the xxh64 of one that is a string.
struct Air {
    std::unordered_set<int64_t> keys;
    bool only = false;

    Air changed(const std::vector<int64_t>& on, const std::vector<int64_t>& off) const;
};

class Index {
  public:
    struct Found {
        std::vector<int64_t> items;  // the best first
        std::vector<float> scores;
    };

    // folder: of a version, whose files are as its manifest says. Raises std::runtime_error.
    explicit Index(const std::filesystem::path& folder);
    ~Index();

    // user: (width) or (K, width) of K interests, of which an item's product is the largest. air: all is found without.
    Found search(const at::Tensor& user, int64_t count, const std::shared_ptr<const Air>& air,
                 const std::vector<int64_t>& exclude);

    bool strings() const { return strings_; }
    size_t items() const { return keys_.size(); }
    const std::string& model() const { return model_; }  // the xxh64 of the manifest of the export that made the vectors

  private:
    struct Mask;   // of places
    struct Graph;  // of faiss

    std::shared_ptr<const Mask> mask_of(const std::shared_ptr<const Air>& air);

    std::vector<int64_t> keys_;
    std::unordered_map<int64_t, int64_t> places_;
    bool strings_ = false;
    std::string model_;
    at::Tensor vectors_;  // (N, width) of an exact index
    std::unique_ptr<Graph> graph_;
    std::mutex changing_;
    std::shared_ptr<const Mask> mask_;
};

}  // namespace serve
