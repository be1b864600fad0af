// What answers a request: one model, or a pre-rank, a ranker and a re-ranker one after the other.

#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model.h"

namespace serve {

using Models = std::map<std::string, std::unique_ptr<Model>>;

// The answer to a request, and what is logged of it.
struct Outcome {
    wire::Answer answer;
    at::Tensor order, prerank;  // of rank: (k) int64 places, best first; (n) float32 or undefined
};

// Of the models that answer together in one moment: what a request has to give.
struct Joint {
    std::shared_ptr<const About> rank, prerank, vectors;
    wire::Signature signature;
    store::Reads reads;  // which columns these read
    std::vector<std::string> ids;
};

class Pipeline {
  public:
    // model: that ranks or retrieves; the other members of `config` may be empty. Raises BadConfig where the parts do
    // not fit.
    Pipeline(Models& models, const RankConfig& config);

    // ids: columns by whose ids the feature store goes, see Store::ids; a request may have them.
    std::shared_ptr<const Joint> joint(const std::vector<std::string>& ids = {});
    const Model& model() const { return model_; }

    // Of kind retrieve: requests of several users are answered together.
    bool joins() const { return model_.config.kind == "retrieve"; }

    // Answers a request, or where it joins any number of them; returns nothing where a model was replaced since `joint`:
    // then they are to be read anew. rows: of each request, by wire::check. What one of several requests has wrong is
    // an exception for all.
    using Asked = std::pair<const wire::Request*, int64_t>;
    std::optional<std::vector<Outcome>> answer(const std::vector<Asked>& asked, const Joint& joint);

  private:
    std::optional<Outcome> rank(const wire::Request& request, int64_t rows, const Joint& joint);
    std::optional<std::vector<Outcome>> retrieve(const std::vector<Asked>& asked, const Joint& joint);
    std::vector<int64_t> cut(const at::Tensor& scores, const wire::Request& request) const;
    at::Tensor rerank(const wire::Request& kept, int64_t rows, const Joint& joint, const at::Tensor& relevance);

    Model& model_;
    Model *prerank_, *vectors_;  // null of none
    const RankConfig config_;
    std::optional<torch::jit::Module> cut_, rerank_;
    std::mutex mutex_;
    std::shared_ptr<const Joint> joint_;
};

}  // namespace serve
