// What answers a request: one model, or a pre-rank, a ranker and a re-ranker one after the other.

#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

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
};

class Pipeline {
  public:
    // model: that ranks or retrieves; the other members of `config` may be empty. Raises BadConfig where the parts do
    // not fit.
    Pipeline(Models& models, const RankConfig& config);

    std::shared_ptr<const Joint> joint();
    const Model& model() const { return model_; }

    // Answers, or returns nothing where a model was replaced since `joint`: then the request is to be read anew. rows:
    // of the request, by wire::check.
    std::optional<Outcome> answer(const wire::Request& request, int64_t rows, const Joint& joint);

  private:
    std::optional<Outcome> retrieve(const wire::Request& request, int64_t rows, const Joint& joint);
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
