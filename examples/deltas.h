// A published model in a C++ server: a base and the deltas since, each taken in whole or not at all.
//
//     Served served("/models/din");
//     served.refresh();                                      // now and then; from one thread at a time
//     served.use([&](torch::jit::Module& model) { ... });     // from any number of threads
//
// While a delta is written to the model nobody is in `use`; it is read and checked before. Tables in files of their own
// are mapped copy-on-write: a page that a delta touches becomes memory of this process. Needs libtorch alone.

#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <tuple>
#include <utility>

#include "serving.h"

// xxHash's 64-bit hash with seed 0 of what comes in parts.
class Xxh64 {
  public:
    void update(const char* data, size_t size) {
        total_ += size;
        while (size > 0) {
            const size_t taken = std::min(size, sizeof(held_) - filled_);
            std::memcpy(held_ + filled_, data, taken);
            filled_ += taken, data += taken, size -= taken;
            if (filled_ < sizeof(held_)) break;
            for (int lane = 0; lane < 4; ++lane) lanes_[lane] = round(lanes_[lane], word<uint64_t>(held_ + 8 * lane));
            filled_ = 0;
        }
    }
    std::string hex() const {
        uint64_t hash = P5;
        if (total_ >= sizeof(held_)) {
            hash = turned(lanes_[0], 1) + turned(lanes_[1], 7) + turned(lanes_[2], 12) + turned(lanes_[3], 18);
            for (const auto lane : lanes_) hash = (hash ^ round(0, lane)) * P1 + P4;
        }
        hash += total_;
        size_t at = 0;
        for (; at + 8 <= filled_; at += 8) hash = turned(hash ^ round(0, word<uint64_t>(held_ + at)), 27) * P1 + P4;
        for (; at + 4 <= filled_; at += 4) hash = turned(hash ^ (word<uint32_t>(held_ + at) * P1), 23) * P2 + P3;
        for (; at < filled_; ++at) hash = turned(hash ^ (static_cast<unsigned char>(held_[at]) * P5), 11) * P1;
        hash = (hash ^ (hash >> 33)) * P2;
        hash = (hash ^ (hash >> 29)) * P3;
        hash ^= hash >> 32;
        std::string text(16, '0');
        for (int place = 15; place >= 0; --place, hash >>= 4) text[place] = "0123456789abcdef"[hash & 15];
        return text;
    }

  private:
    static constexpr uint64_t P1 = 11400714785074694791u, P2 = 14029467366897019727u, P3 = 1609587929392839161u,
                              P4 = 9650029242287828579u, P5 = 2870177450012600261u;
    static uint64_t turned(uint64_t x, int by) { return (x << by) | (x >> (64 - by)); }
    static uint64_t round(uint64_t lane, uint64_t input) { return turned(lane + input * P2, 31) * P1; }
    template <typename Word>
    static uint64_t word(const char* at) {
        Word read;
        std::memcpy(&read, at, sizeof(read));
        return read;
    }

    uint64_t lanes_[4] = {P1 + P2, P2, 0, 0 - P1}, total_ = 0;
    char held_[32];
    size_t filled_ = 0;
};

class Served {
  public:
    // where: the folder of the published versions; file: model.pt, or user.pt or item.pt of a model with two towers.
    explicit Served(std::filesystem::path where, std::string file = "model.pt")
        : where_(std::move(where)), file_(std::move(file)) {
        const auto pointer = JsonReader(where_ / "current.json").value();
        begin(pointer);
        follow(pointer);
    }

    // Takes in what was published since, and returns whether anything was. What cannot be taken in is an exception:
    // the model stays as it was before, and a new base is asked for where this process may write.
    bool refresh() {
        const auto pointer = JsonReader(where_ / "current.json").value();
        if (std::stoll(pointer.at("fence").text) < fence_) return false;  // a stale copy, or a late writer
        const auto before = std::make_pair(folder_, number_);
        const auto deltas = listed(pointer);
        const bool goes_on = number_ <= deltas.size() && (number_ == 0 || deltas[number_ - 1].at("xxh64").text == seal_);
        if (pointer.at("folder").text != folder_ || !goes_on) begin(pointer);
        follow(pointer);
        return before != std::make_pair(folder_, number_);
    }

    template <typename Work>
    auto use(Work&& work) {
        const std::shared_lock lock(gate_);
        return work(model_);
    }

    size_t number() const { return number_; }  // of the last delta taken in; 0 of the base alone
    // The newest golden rows, with the scores that they must have now.
    Json golden() const { return JsonReader(golden_ / "golden.json").value(); }

  private:
    using Change = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // where, rows (undefined: the whole), values

    static std::vector<Json> listed(const Json& pointer) {
        const auto found = pointer.members.find("deltas");
        return found == pointer.members.end() ? std::vector<Json>() : found->second.entries;
    }

    void begin(const Json& pointer) {
        const auto folder = pointer.at("folder").text;
        try {
            checked(where_ / folder, "");
        } catch (const std::exception& error) {
            ask(folder, error);
            throw;
        }
        auto model = torch::jit::load((where_ / folder / file_).string());
        model.eval();
        const auto signature = JsonReader(where_ / folder / "signature.json").value();
        if (signature.members.count("stored"))
            model.run_method("attach", tables(signature.at("stored"), where_ / folder));
        const std::unique_lock lock(gate_);
        model_ = model, folder_ = folder, number_ = 0, seal_ = "", golden_ = where_ / folder;
        fence_ = std::stoll(pointer.at("fence").text);
    }

    void follow(const Json& pointer) {
        fence_ = std::stoll(pointer.at("fence").text);
        const auto deltas = listed(pointer);
        while (number_ < deltas.size()) {
            const auto& next = deltas[number_];
            try {
                take(where_ / next.at("folder").text, next.at("xxh64").text);
            } catch (const std::exception& error) {
                ask(folder_, error);
                throw;
            }
            seal_ = next.at("xxh64").text;
        }
    }

    // Asks the publisher for a new base, where this process may write.
    void ask(const std::string& folder, const std::exception& error) const {
        std::ofstream(where_ / folder / "wanted.txt", std::ios::app) << error.what() << "\n";
    }

    void take(const std::filesystem::path& folder, const std::string& seal) {
        const auto about = checked(folder, seal);
        const auto before = about.at("before").text;
        if (about.at("base").text != folder_ || about.at("number").text != std::to_string(number_ + 1) ||
            before != (seal_.empty() ? "null" : seal_))
            throw std::runtime_error(folder.string() + " does not follow on what is served; publish a new base");
        const auto changed = changes(folder);
        torch::NoGradGuard guard;
        const std::unique_lock lock(gate_);
        for (const auto& [target, rows, values] : changed) {
            if (rows.defined()) target.index_copy_(0, rows, values);
            else target.copy_(values);
        }
        ++number_, golden_ = folder;
    }

    // Returns what is to be written where, once all of it is known to fit.
    std::vector<Change> changes(const std::filesystem::path& folder) {
        const auto index = JsonReader(folder / "delta.json").value();
        if (index.at("format").text != "1")
            throw std::runtime_error(folder.string() + " is of a newer format; take a newer program");
        const auto size = static_cast<int64_t>(std::filesystem::file_size(folder / "delta.bin"));
        const auto numbers = torch::from_file((folder / "delta.bin").string(), false, size, torch::kUInt8);
        std::map<std::string, at::Tensor> own;
        for (const auto& each : model_.named_parameters()) own[each.name] = each.value;
        for (const auto& each : model_.named_buffers()) own[each.name] = each.value;
        std::vector<Change> found;
        std::map<void*, bool> seen;  // features share tables
        const auto add = [&](const std::string& name, const at::Tensor& rows, const at::Tensor& values) {
            const auto place = own.find(name);
            const bool fits = place != own.end() && place->second.dtype() == values.dtype() &&
                              place->second.sizes().slice(rows.defined()) == values.sizes().slice(rows.defined());
            const bool inside = fits && (!rows.defined() || rows.numel() == values.size(0)) &&
                                (!rows.defined() || rows.numel() == 0 ||
                                 (rows[0].item<int64_t>() >= 0 && rows[-1].item<int64_t>() < place->second.size(0)));
            if (!inside) throw std::runtime_error(folder.string() + ": '" + name + "' is another model's");
            if (place->second.numel() == 0 || seen[place->second.data_ptr()]) return;
            seen[place->second.data_ptr()] = true;
            found.emplace_back(place->second, rows, values);
        };
        const auto& mine = index.at("files").at(file_);
        for (const auto& [name, about] : mine.at("rows").members)
            add(name, tensor(index.at("rows").at(about.at("table").text), numbers),
                tensor(index.at("values").at(about.at("values").text), numbers));
        for (const auto& [name, about] : mine.at("whole").members) add(name, {}, tensor(about, numbers));
        return found;
    }

    static at::Tensor tensor(const Json& about, const at::Tensor& numbers) {
        static const std::map<std::string, at::ScalarType> types = {
            {"float32", torch::kFloat32}, {"float64", torch::kFloat64}, {"float16", torch::kFloat16},
            {"bfloat16", torch::kBFloat16}, {"uint8", torch::kUInt8},   {"bool", torch::kBool},
            {"int8", torch::kInt8},         {"int16", torch::kInt16},   {"int32", torch::kInt32},
            {"int64", torch::kInt64}};
        const auto type = types.at(about.at("dtype").text);
        std::vector<int64_t> shape;
        int64_t count = 1;
        for (const auto& each : about.at("shape").entries) shape.push_back(std::stoll(each.text)), count *= shape.back();
        if (count == 0) return torch::empty(shape, type);
        const auto bytes = count * static_cast<int64_t>(c10::elementSize(type));
        return numbers.narrow(0, std::stoll(about.at("at").text), bytes).view(type).view(shape);
    }

    // Returns the manifest of a folder whose files are as it says; with `seal` the hash that it must have itself.
    static Json checked(const std::filesystem::path& folder, const std::string& seal) {
        const auto manifest = folder / "manifest.json";
        if (!std::filesystem::exists(manifest) || (!seal.empty() && hash(manifest) != seal))
            throw std::runtime_error(manifest.string() + " is missing, or not what the pointer names; publish a new base");
        const auto content = JsonReader(manifest).value();
        for (const auto& [name, wanted] : content.at("files").members)
            if (!std::filesystem::exists(folder / name) || hash(folder / name) != wanted.at("xxh64").text)
                throw std::runtime_error((folder / name).string() + " is missing or damaged; publish a new base");
        return content;
    }

    static std::string hash(const std::filesystem::path& path) {
        std::ifstream file(path, std::ios::binary);
        std::vector<char> part(1 << 20);
        Xxh64 found;
        while (file.read(part.data(), part.size()), file.gcount() > 0) found.update(part.data(), file.gcount());
        return found.hex();
    }

    std::filesystem::path where_, golden_;
    std::string file_, folder_, seal_;
    size_t number_ = 0;
    int64_t fence_ = 0;
    torch::jit::Module model_;
    std::shared_mutex gate_;
};
