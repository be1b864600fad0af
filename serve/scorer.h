// One file of an export, loaded: what scores rows, ranks candidates, or makes a tower's vectors.

#pragma once

#include <memory>
#include <utility>

#include "compiled.h"
#include "serving.h"

class Scorer {
  public:
    // folder: of the export; file: model.pt, user.pt or item.pt; mapped: tables that lie in files of their own.
    Scorer(const std::filesystem::path& folder, const std::string& file, const Columns& mapped)
        : module_(torch::jit::load((folder / file).string())) {
        module_.eval();
        if (!mapped.empty()) module_.run_method("attach", mapped);
    }

    // Rows, and candidates of one user: by task (B,). From any number of threads.
    Columns forward(const Columns& ids, const Columns& lengths, const Columns& dense) {
        if (compiled_)
            if (auto found = compiled_->forward(ids, lengths, dense)) return *found;
        return typed(module_.forward({ids, lengths, dense}));
    }
    Columns rank(const Columns& ids, const Columns& lengths, const Columns& dense) {
        if (compiled_)
            if (auto found = compiled_->rank(ids, lengths, dense)) return *found;
        return typed(module_.get_method("rank")({ids, lengths, dense}));
    }
    // Of a tower: (B, width), or (B, K, width) of K interests.
    at::Tensor encode(const Columns& ids, const Columns& lengths, const Columns& dense) {
        if (compiled_)
            if (auto found = compiled_->forward(ids, lengths, dense)) return found->at("vectors");
        return module_.forward({ids, lengths, dense}).toTensor();
    }

    // Holds the parameters and buffers that deltas are written to.
    torch::jit::Module& module() { return module_; }

    // Scores by compiled code from now on, if it fits this machine, gives these rows the same scores and takes less
    // processor time for them; returns in words what was decided. Before anybody is served.
    // path: of the .pt2; signature: of the export; the rows are those of golden.json, and so is the tolerance.
    std::string consider(const std::filesystem::path& path, const Json& signature, const Columns& ids,
                         const Columns& lengths, const Columns& dense, double tolerance, size_t runners) {
        const auto name = path.filename().string() + ": ";
        const torch::NoGradGuard guard;
        try {
            if (const auto why = Compiled::unfit(signature.at("compiled")); !why.empty()) return name + why;
            const auto& about = signature.at("flat").at(path.stem().string());
            auto compiled = std::make_unique<Compiled>(path, about, module_, runners);
            const auto [ask, ways] = requests(about, ids, lengths, dense);
            std::vector<double> theirs, ours;
            for (int call = 0; call < CALLS; ++call) {  // in turns, and the first ones count least: medians
                for (const auto& way : ways) {
                    const auto& [i, l, d] = ask.at(way);
                    std::map<std::string, at::Tensor> wanted, found;
                    theirs.push_back(spent([&] { wanted = scripted(way, i, l, d); }));
                    ours.push_back(spent([&] {
                        const auto answer = way == "rank" ? compiled->rank(i, l, d) : compiled->forward(i, l, d);
                        if (!answer) throw std::runtime_error("it does not take the golden rows");
                        for (const auto& each : *answer) found.emplace(each.key(), each.value());
                    }));
                    for (const auto& [task, scores] : wanted)
                        if (!near(found.at(task), scores, tolerance)) return name + "the golden rows score otherwise";
                }
            }
            const auto fast = median(ours), slow = median(theirs);
            std::ostringstream said;
            said.precision(2);
            said << name << fast / slow << " of TorchScript's processor time on the golden rows; ";
            if (fast < slow) compiled_ = std::move(compiled);
            said << (compiled_ ? "it scores" : "TorchScript scores");
            return said.str();
        } catch (const std::exception& error) {
            return name + error.what() + "; TorchScript scores";
        }
    }

  private:
    static constexpr int CALLS = 20, TIMES = 16;  // how often golden rows are repeated to be as many as candidates are
    using Request = std::tuple<Columns, Columns, Columns>;

    static Columns typed(const c10::IValue& answer) {
        return c10::impl::toTypedDict<std::string, at::Tensor>(answer.toGenericDict());
    }

    // What is asked of the two ways to score: the rows; and with `rank` the first row's user and all rows' candidates.
    static std::pair<std::map<std::string, Request>, std::vector<std::string>> requests(
        const Json& about, const Columns& ids, const Columns& lengths, const Columns& dense) {
        std::map<std::string, Request> ask{{"forward", {ids, lengths, dense}}};
        if (about.at("ways").entries.size() == 1) return {ask, {"forward"}};
        std::set<std::string> once;
        for (const auto& name : about.at("once").entries) once.insert(name.text);
        Columns i, l, d;
        const auto several = [](const at::Tensor& column) {
            std::vector<int64_t> times(column.dim(), 1);
            times[0] = TIMES;
            return column.repeat(times);
        };
        for (const auto& each : lengths) {
            const auto& name = each.key();
            const bool own = once.count(name) && each.value().numel() > 0;
            const auto count = own ? each.value()[0].item<int64_t>() : 0;
            l.insert(name, own ? each.value().narrow(0, 0, 1) : several(each.value()));
            i.insert(name, own ? ids.at(name).narrow(0, 0, count) : several(ids.at(name)));
            if (dense.contains(name)) d.insert(name, own ? dense.at(name).narrow(0, 0, count) : several(dense.at(name)));
        }
        for (const auto& each : dense)
            if (!lengths.contains(each.key()))
                d.insert(each.key(), once.count(each.key()) ? each.value().narrow(0, 0, 1) : several(each.value()));
        ask.emplace("rank", Request{i, l, d});
        return {ask, {"forward", "rank"}};
    }

    std::map<std::string, at::Tensor> scripted(const std::string& way, const Columns& ids, const Columns& lengths,
                                               const Columns& dense) {
        const auto answer = module_.get_method(way)({ids, lengths, dense});
        if (answer.isTensor()) return {{"vectors", answer.toTensor()}};
        std::map<std::string, at::Tensor> found;
        for (const auto& each : typed(answer)) found.emplace(each.key(), each.value());
        return found;
    }

    static bool near(const at::Tensor& found, const at::Tensor& wanted, double tolerance) {
        if (!found.sizes().equals(wanted.sizes())) return false;
        const auto close = (found - wanted).abs() <= tolerance * wanted.abs().clamp_min(1);
        return close.logical_or(found.isnan().logical_and(wanted.isnan())).all().item<bool>();
    }

    static double median(std::vector<double> values) {
        std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
        return values[values.size() / 2];
    }

    torch::jit::Module module_;
    std::unique_ptr<Compiled> compiled_;
};
