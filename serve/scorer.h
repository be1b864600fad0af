// One file of an export, loaded: what scores rows, ranks candidates, or makes a tower's vectors.

#pragma once

#include <utility>

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
        return typed(module_.forward({ids, lengths, dense}));
    }
    Columns rank(const Columns& ids, const Columns& lengths, const Columns& dense) {
        return typed(module_.get_method("rank")({ids, lengths, dense}));
    }
    // Of a tower: (B, width), or (B, K, width) of K interests.
    at::Tensor encode(const Columns& ids, const Columns& lengths, const Columns& dense) {
        return module_.forward({ids, lengths, dense}).toTensor();
    }

    // Holds the parameters and buffers that deltas are written to.
    torch::jit::Module& module() { return module_; }

  private:
    static Columns typed(const c10::IValue& answer) {
        return c10::impl::toTypedDict<std::string, at::Tensor>(answer.toGenericDict());
    }

    torch::jit::Module module_;
};
