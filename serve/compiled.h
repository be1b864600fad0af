// A .pt2 file of an export: the code of model.pt, or of a tower, compiled for one release of PyTorch and one kind of
// processor. It has no tensors of its own: it reads those of the scripted module, so what a delta or `attach` changes
// there it scores by at once. docs/guide/compiled-export.md tells more.

#pragma once

#include <time.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <sstream>

#include "serving.h"

class Compiled {
  public:
    // Why files that were compiled cannot be loaded here; empty where they can. about: `compiled` of signature.json.
    static std::string unfit(const Json& about) {
        const auto wanted = about.at("torch").text;
        if (wanted != TORCH_VERSION) return "it was compiled for torch " + wanted + ", and this is " TORCH_VERSION;
        std::ifstream file("/proc/cpuinfo");
        std::set<std::string> here;
        for (std::string line; std::getline(file, line);) {
            if (line.rfind("flags", 0) != 0) continue;
            std::istringstream words(line.substr(line.find(':') + 1));
            for (std::string word; words >> word;) here.insert(word);
            break;
        }
        for (const auto& flag : about.at("flags").entries)
            if (!here.count(flag.text)) return "it was compiled for processors with " + flag.text;
        return "";
    }

    // path: of the file; about: its entry in `flat` of signature.json; module: the scripted one, with its tables;
    // runners: how many calls may run at once.
    Compiled(const std::filesystem::path& path, const Json& about, const torch::jit::Module& module, size_t runners) {
        for (const auto& name : about.at("once").entries) once_.insert(name.text);
        for (const auto& name : about.at("outputs").entries) outputs_.push_back(name.text);
        for (const auto& input : about.at("inputs").entries) {
            const auto name = input.at("name").text;
            const auto dot = name.find('.');
            const auto part = name.substr(0, dot), feature = name.substr(dot + 1);
            if (features_.empty() || features_.back().name != feature) features_.push_back({feature, {}, {}});
            if (part == "ids") features_.back().limit = std::stoll(input.at("limit").text);
            if (part == "dense") features_.back().width = std::stoll(input.at("width").text);
        }
        std::unordered_map<std::string, at::Tensor> tensors;
        for (const auto& each : module.named_parameters()) tensors.emplace("module." + each.name, each.value.detach());
        for (const auto& each : module.named_buffers()) tensors.emplace("module." + each.name, each.value);
        for (const auto& way : about.at("ways").entries) {
            auto code = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path.string(), way.text, false, runners);
            std::unordered_map<std::string, at::Tensor> taken;
            for (const auto& name : code->get_constant_fqns()) {
                const auto found = tensors.find(name);
                if (found == tensors.end())
                    throw std::runtime_error(path.filename().string() + " is another model's: it asks for " + name);
                taken.insert(*found);
                kept_.push_back(found->second);
            }
            code->load_constants(taken, false, true, true);
            code_.emplace(way.text, std::move(code));
        }
    }

    // Rows, and candidates of one user; nothing where the scripted module has to answer: for a request that it has to
    // refuse, or of no rows at all. From any number of threads.
    std::optional<Columns> forward(const Columns& ids, const Columns& lengths, const Columns& dense) {
        std::vector<Read> read;
        if (!taken(ids, lengths, dense, read)) return std::nullopt;
        for (const auto& feature : read)
            if (feature.rows != read[0].rows) return std::nullopt;
        return run("forward", read);
    }
    std::optional<Columns> rank(const Columns& ids, const Columns& lengths, const Columns& dense) {
        std::vector<Read> read;
        if (!taken(ids, lengths, dense, read)) return std::nullopt;
        int64_t size = 1;
        bool whole = false;  // whether what `rank` takes once comes once per candidate
        for (const auto& feature : read) {
            if (feature.rows != 1 && size != 1 && feature.rows != size) return std::nullopt;
            if (feature.rows != 1) size = feature.rows;
        }
        for (size_t i = 0; i < read.size(); ++i) whole |= read[i].rows != 1 && once_.count(features_[i].name);
        for (size_t i = 0; i < read.size(); ++i) {
            if (read[i].rows == size || (!whole && once_.count(features_[i].name))) continue;
            for (auto& column : read[i].columns) {
                std::vector<int64_t> times(column.dim(), 1);
                times[0] = size;
                column = column.repeat(times);
            }
        }
        return run(whole ? "forward" : "rank", read);
    }

  private:
    struct Feature {
        std::string name;
        std::optional<int64_t> limit;  // of a feature of ids: the longest list, 0 of one with at most one id
        std::optional<int64_t> width;  // numbers per row, or beside each id
    };
    struct Read {
        std::vector<at::Tensor> columns;  // in the order of the file's inputs
        int64_t rows = 0;
    };

    bool taken(const Columns& ids, const Columns& lengths, const Columns& dense, std::vector<Read>& read) const {
        for (const auto& feature : features_) {
            read.emplace_back();
            const bool fits = feature.limit ? taken(feature, ids, lengths, dense, read.back())
                                            : numbers(feature, dense, read.back());
            if (!fits || read.back().rows == 0) return false;
        }
        return !read.empty();
    }

    // Ids as the scripted module reads them, cut to the newest of each list; false where it would refuse them.
    static bool taken(const Feature& feature, const Columns& ids, const Columns& lengths, const Columns& dense, Read& read) {
        if (!ids.contains(feature.name)) return false;
        auto value = ids.at(feature.name);
        if (value.dim() != 1 || (value.is_floating_point() && value.numel() > 0)) return false;
        value = value.to(torch::kInt64).contiguous();
        const auto limit = *feature.limit;
        at::Tensor length;
        if (lengths.contains(feature.name)) length = lengths.at(feature.name).to(torch::kInt64).contiguous();
        else if (limit == 0) length = torch::ones_like(value);
        else return false;
        if (length.dim() != 1) return false;
        int64_t sum = 0, longest = 0;
        const auto counts = length.data_ptr<int64_t>();
        for (int64_t row = 0; row < length.numel(); ++row) {
            if (counts[row] < 0) return false;
            sum += counts[row], longest = std::max(longest, counts[row]);
        }
        if (sum != value.numel() || (limit == 0 && longest > 1)) return false;
        read.rows = length.numel();
        at::Tensor beside;
        if (feature.width) {
            Read found;
            if (!numbers(feature, dense, found) || found.rows != sum) return false;
            beside = found.columns[0];
        }
        if (limit > 0 && longest > limit) {
            std::vector<int64_t> newest;
            int64_t end = 0;
            for (int64_t row = 0; row < length.numel(); ++row) {
                end += counts[row];
                for (int64_t at = end - std::min(counts[row], limit); at < end; ++at) newest.push_back(at);
            }
            const auto places = torch::tensor(newest, torch::kInt64);
            value = value.index_select(0, places), length = length.clamp_max(limit);
            if (beside.defined()) beside = beside.index_select(0, places);
        }
        read.columns = {value, length};
        if (beside.defined()) read.columns.push_back(beside);
        return true;
    }

    static bool numbers(const Feature& feature, const Columns& dense, Read& read) {
        if (!dense.contains(feature.name)) return false;
        auto found = dense.at(feature.name).to(torch::kFloat32).contiguous();
        if (*feature.width > 1 && found.numel() == 0) found = found.reshape({0, *feature.width});
        if (found.dim() != (*feature.width > 1 ? 2 : 1)) return false;
        if (*feature.width > 1 && found.size(1) != *feature.width) return false;
        read.rows = found.size(0), read.columns = {found};
        return true;
    }

    Columns run(const std::string& way, const std::vector<Read>& read) {
        std::vector<at::Tensor> inputs;
        for (const auto& feature : read) inputs.insert(inputs.end(), feature.columns.begin(), feature.columns.end());
        const auto found = code_.at(way)->run(inputs);
        Columns out;
        for (size_t i = 0; i < outputs_.size(); ++i) out.insert(outputs_[i], found.at(i));
        return out;
    }

    std::vector<Feature> features_;
    std::set<std::string> once_;
    std::vector<std::string> outputs_;
    std::vector<at::Tensor> kept_;  // the code keeps no tensor alive
    std::map<std::string, std::unique_ptr<torch::inductor::AOTIModelPackageLoader>> code_;
};

// Seconds of processor time of this thread that a call takes, the median of so many.
template <typename Call>
double spent(Call&& call) {
    std::array<timespec, 2> clock{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &clock[0]);
    call();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &clock[1]);
    return static_cast<double>(clock[1].tv_sec - clock[0].tv_sec) + 1e-9 * static_cast<double>(clock[1].tv_nsec - clock[0].tv_nsec);
}
