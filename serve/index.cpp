#include "index.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "xxh64.h"

#ifdef LIVETRAIN_FAISS
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVF.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/index_io.h>
#endif

namespace serve {
namespace {

constexpr float NONE = -std::numeric_limits<float>::infinity();
constexpr int64_t NUMBERS = 1 << 24;  // of a product of items with users, at most: 64 MB

// Reads faiss's file of an exact index: "IxFI", width (int32), items (int64), 16 bytes, trained (bool), metric (int32),
// count of numbers (int64), float32 numbers.
at::Tensor flat(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    char head[45];
    int32_t width = 0;
    int64_t items = 0, numbers = 0;
    if (file.read(head, sizeof(head)) && std::memcmp(head, "IxFI", 4) == 0) {
        std::memcpy(&width, head + 4, 4), std::memcpy(&items, head + 8, 8), std::memcpy(&numbers, head + 37, 8);
    }
    const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
    if (width < 1 || items < 0 || numbers != items * width || size != 45 + 4 * numbers) return {};
    auto vectors = at::empty({items, width});
    file.read(static_cast<char*>(vectors.data_ptr()), 4 * numbers);
    return vectors;
}

}  // namespace

Air Air::changed(const std::vector<int64_t>& on, const std::vector<int64_t>& off, const Index& index) const {
    Air next = *this;
    ++next.changes;
    const auto& [listed, other] = only ? std::tie(on, off) : std::tie(off, on);
    for (const auto key : listed) next.keys.insert_or_assign(key, next.changes);
    for (const auto key : other) next.keys.erase(key);
    if (only || next.keys.size() <= index.items() + KEPT) return next;
    std::vector<std::pair<int64_t, int64_t>> unknown;
    for (const auto& [key, change] : next.keys)
        if (!index.holds(key)) unknown.emplace_back(change, key);
    std::sort(unknown.begin(), unknown.end());
    for (size_t place = 0; place + KEPT / 2 < unknown.size(); ++place) next.keys.erase(unknown[place].second);
    return next;
}

struct Index::Mask {
    std::shared_ptr<const Air> air;
    at::Tensor off;             // (N) bool: places that are not found
    std::vector<uint8_t> bits;  // those that are, a bit each
    int64_t left = 0;
};

#ifdef LIVETRAIN_FAISS
struct Index::Graph {
    std::unique_ptr<faiss::Index> index;

    // As much of a graph or of its lists is looked at as finds enough among the items that are left. Where a graph would
    // show as many as there are, they are compared each, in its store.
    void search(const float* query, int64_t count, const Mask* mask, float* scores, int64_t* places) const {
        if (!mask) return index->search(1, query, count, scores, places);
        faiss::IDSelectorBitmap air(mask->bits.size(), mask->bits.data());
        const int64_t left = std::max<int64_t>(mask->left, 1);
        const auto scaled = [&](int64_t effort) { return (effort * index->ntotal + left - 1) / left; };
        if (const auto* graph = dynamic_cast<const faiss::IndexHNSW*>(index.get())) {
            const int64_t effort = scaled(std::max<int64_t>(graph->hnsw.efSearch, count));
            if (effort < left) {
                faiss::SearchParametersHNSW how;
                how.efSearch = static_cast<int>(effort), how.sel = &air;
                return index->search(1, query, count, scores, places, &how);
            }
            faiss::SearchParameters how;
            how.sel = &air;
            return graph->storage->search(1, query, count, scores, places, &how);
        }
        if (const auto* lists = dynamic_cast<const faiss::IndexIVF*>(index.get())) {
            faiss::SearchParametersIVF how;
            how.nprobe = std::min<size_t>(scaled(lists->nprobe), lists->nlist);
            how.sel = &air;
            return index->search(1, query, count, scores, places, &how);
        }
        faiss::SearchParameters how;
        how.sel = &air;
        index->search(1, query, count, scores, places, &how);
    }
};
#else
struct Index::Graph {
    void search(const float*, int64_t, const Mask*, float*, int64_t*) const {}
};
#endif

Index::Index(const std::filesystem::path& folder) {
    std::ifstream about_file(folder / "index.json"), keys(folder / "keys.txt");
    const auto about = nlohmann::json::parse(about_file);
    strings_ = about.at("key").at("type") == "string";
    model_ = about.value("model", "");
    for (std::string line; std::getline(keys, line);) {
        Xxh64 hash;
        hash.update(line.data(), line.size());
        keys_.push_back(strings_ ? static_cast<int64_t>(hash.value()) : std::stoll(line));
        if (strings_) names_.push_back(line);
        places_.emplace(keys_.back(), keys_.size() - 1);
    }
    const auto kind = about.at("kind").get<std::string>(), file = (folder / "index.faiss").string();
    if (kind == "inverted")
        throw std::runtime_error(folder.string() + " is an inverted table, and a user's vector searches one of vectors");
    vectors_ = flat(file);
    int64_t items = vectors_.defined() ? vectors_.size(0) : 0;
    if (!vectors_.defined()) {
#ifdef LIVETRAIN_FAISS
        graph_ = std::make_unique<Graph>();
        graph_->index.reset(faiss::read_index(file.c_str()));
        items = graph_->index->ntotal;
#else
        throw std::runtime_error(folder.string() + " is of kind " + kind + ", for which this server was built without " +
                                 "faiss; install libfaiss-dev and build it again, or index with --kind exact");
#endif
    }
    if (items != static_cast<int64_t>(keys_.size()))
        throw std::runtime_error(folder.string() + " has other keys than vectors; build the index again");
}

Index::~Index() = default;

std::shared_ptr<const Index::Mask> Index::mask_of(const std::shared_ptr<const Air>& air) {
    if (!air || (!air->only && air->keys.empty())) return nullptr;
    const std::lock_guard lock(changing_);
    if (mask_ && mask_->air == air) return mask_;
    auto mask = std::make_shared<Mask>();
    mask->air = air;
    mask->off = at::full({static_cast<int64_t>(keys_.size())}, air->only, at::kBool);
    auto* off = mask->off.data_ptr<bool>();
    for (const auto& [key, change] : air->keys)
        if (const auto found = places_.find(key); found != places_.end()) off[found->second] = !air->only;
    mask->bits.assign((keys_.size() + 7) / 8, 0);
    for (size_t place = 0; place < keys_.size(); ++place)
        if (!off[place]) mask->bits[place >> 3] |= 1 << (place & 7), ++mask->left;
    mask_ = mask;
    return mask;
}

std::vector<Index::Found> Index::search(const at::Tensor& users, const std::vector<Asked>& asked,
                                        const std::shared_ptr<const Air>& air) {
    const auto mask = mask_of(air);
    const auto items = static_cast<int64_t>(keys_.size()), interests = users.dim() == 3 ? users.size(1) : 1;
    const auto queries = users.to(at::kFloat).contiguous().view({-1, interests, users.size(-1)});  // (B, K, width)
    const auto most = [&](const Asked& one) {
        const std::unordered_set<int64_t> excluded(one.exclude.begin(), one.exclude.end());
        return std::min<int64_t>(one.count + static_cast<int64_t>(excluded.size()), items);
    };
    std::vector<Found> found;
    if (!vectors_.defined()) {
        for (size_t user = 0; user < asked.size(); ++user) {
            const auto count = most(asked[user]);
            std::vector<float> made(count);
            std::vector<int64_t> places(count);
            std::unordered_map<int64_t, float> largest;
            for (int64_t interest = 0; interest < interests; ++interest) {
                graph_->search(queries[user][interest].data_ptr<float>(), count, mask.get(), made.data(), places.data());
                for (int64_t at = 0; at < count && places[at] >= 0; ++at) {
                    const auto [before, added] = largest.emplace(places[at], made[at]);
                    if (!added) before->second = std::max(before->second, made[at]);
                }
            }
            std::vector<std::pair<float, int64_t>> best;
            for (const auto& [place, score] : largest) best.emplace_back(score, place);
            std::sort(best.begin(), best.end(), [](const auto& one, const auto& other) {
                return one.first != other.first ? one.first > other.first : one.second < other.second;
            });
            found.push_back(this->best(std::move(best), asked[user]));
        }
        return found;
    }
    const auto users_at_once = std::max<int64_t>(NUMBERS / std::max<int64_t>(items * interests, 1), 1);
    for (int64_t first = 0; first < queries.size(0); first += users_at_once) {
        auto columns = queries.slice(0, first, first + users_at_once).reshape({-1, queries.size(2)});
        const auto several = columns.size(0) / interests;
        // With one vector the product takes 2.4 times as long as with two (MKL, 20,000 to 200,000 items of 128 numbers).
        if (columns.size(0) == 1) columns = columns.expand({2, -1});
        auto scores = at::matmul(vectors_, columns.t()).slice(1, 0, several * interests);
        if (interests > 1) scores = std::get<0>(scores.view({items, several, interests}).max(2));
        if (mask) scores = scores.masked_fill(mask->off.unsqueeze(1), NONE);
        for (int64_t user = 0; user < several; ++user) {
            const auto& one = asked[first + user];
            const auto count = most(one);
            const auto [made, places] = scores.select(1, user).topk(count);
            std::vector<std::pair<float, int64_t>> best;
            for (int64_t at = 0; at < count; ++at)
                best.emplace_back(made.data_ptr<float>()[at], places.data_ptr<int64_t>()[at]);
            found.push_back(this->best(std::move(best), one));
        }
    }
    return found;
}

// Of places, the best first, so many items as were asked for that are not excluded.
Index::Found Index::best(std::vector<std::pair<float, int64_t>> places, const Asked& asked) const {
    const std::unordered_set<int64_t> excluded(asked.exclude.begin(), asked.exclude.end());
    Found found;
    for (const auto& [score, place] : places) {
        if (static_cast<int64_t>(found.items.size()) == asked.count || score == NONE) break;
        if (excluded.count(keys_[place])) continue;
        found.items.push_back(keys_[place]), found.scores.push_back(score);
        if (strings_) found.names.push_back(names_[place]);
    }
    return found;
}

}  // namespace serve
