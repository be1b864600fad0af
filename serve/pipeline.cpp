#include "pipeline.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <numeric>

namespace serve {
namespace {

at::Tensor places(const std::vector<int64_t>& chosen) { return torch::tensor(chosen, torch::kInt64); }

// Which entries the chosen rows have, of lists one after the other.
at::Tensor entries(const at::Tensor& lengths, const std::vector<int64_t>& chosen) {
    const auto counts = lengths.contiguous();
    const auto* count = counts.data_ptr<int64_t>();
    std::vector<int64_t> begins(counts.numel() + 1, 0), found;
    std::partial_sum(count, count + counts.numel(), begins.begin() + 1);
    for (const auto row : chosen)
        for (int64_t at = begins[row]; at < begins[row + 1]; ++at) found.push_back(at);
    return places(found);
}

// The request with some of its candidates; what is the user's stays.
wire::Request some(const wire::Request& request, const std::vector<int64_t>& chosen, int64_t rows) {
    wire::Request part;
    const auto rows_of = places(chosen);
    for (const auto& column : request.ids) {
        const auto& name = column.key();
        const bool listed = request.lengths.contains(name), beside = request.dense.contains(name);
        auto ids = column.value();
        auto lengths = listed ? request.lengths.at(name) : at::Tensor();
        auto numbers = beside ? request.dense.at(name) : at::Tensor();
        if ((listed ? lengths : ids).size(0) == rows) {
            const auto kept = listed ? entries(lengths, chosen) : rows_of;
            ids = ids.index_select(0, kept);
            if (listed) lengths = lengths.index_select(0, rows_of);
            if (beside) numbers = numbers.index_select(0, kept);
        }
        part.ids.insert(name, ids);
        if (listed) part.lengths.insert(name, lengths);
        if (beside) part.dense.insert(name, numbers);
    }
    for (const auto& column : request.dense) {
        if (request.ids.contains(column.key())) continue;
        const auto& value = column.value();
        part.dense.insert(column.key(), value.size(0) == rows ? value.index_select(0, rows_of) : value);
    }
    return part;
}

// Requests of one user each, as rows.
wire::Request joined(const std::vector<Pipeline::Asked>& asked) {
    for (const auto& [request, rows] : asked)
        if (rows != 1) throw wire::BadRequest(400, "a request for items is of one user; give each feature one row");
    const auto& first = *asked.at(0).first;
    if (asked.size() == 1) return first;
    wire::Request all;
    const auto join = [&](const Columns& of, Columns wire::Request::*part, Columns& into) {
        for (const auto& column : of) {
            std::vector<at::Tensor> parts;
            for (const auto& [request, rows] : asked) parts.push_back((request->*part).at(column.key()));
            into.insert(column.key(), at::cat(parts));
        }
    };
    join(first.ids, &wire::Request::ids, all.ids);
    join(first.dense, &wire::Request::dense, all.dense);
    for (const auto& column : first.ids) {
        const auto& name = column.key();
        std::vector<at::Tensor> parts;  // what comes without lengths is one id
        for (const auto& [request, rows] : asked)
            parts.push_back(request->lengths.contains(name) ? request->lengths.at(name) : at::ones({1}, at::kLong));
        all.lengths.insert(name, at::cat(parts));
    }
    return all;
}

// The name of the score that orders: the one that was named, the fused one, or else the only one; "" of none of these.
std::string ordering(const std::vector<std::string>& scores, const std::string& by) {
    const auto has = [&](const std::string& name) { return std::count(scores.begin(), scores.end(), name) > 0; };
    if (has(by)) return by;
    if (has("fused")) return "fused";
    return scores.size() == 1 && by.empty() ? scores[0] : "";
}

at::Tensor order_of(const at::Tensor& score) {
    const auto finite = score.nan_to_num(-std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity(),
                                         -std::numeric_limits<double>::infinity());
    return std::get<1>(finite.sort(/*stable=*/true, /*dim=*/0, /*descending=*/true));
}

wire::Named named(const Columns& scores, const wire::Signature& signature) {
    wire::Named found;
    for (const auto& name : signature.scores)
        if (scores.contains(name)) found.emplace_back(name, scores.at(name).contiguous());
    return found;
}

// Of each candidate a feature's value, and whether it has one.
std::pair<at::Tensor, at::Tensor> column(const wire::Request& request, const std::string& name, int64_t rows) {
    const bool ids = request.ids.contains(name), numbers = !ids && request.dense.contains(name);
    const auto value = ids ? request.ids.at(name) : numbers ? request.dense.at(name) : at::Tensor();
    if (numbers && value.dim() == 1 && value.size(0) == rows) return {value, value.isnan().logical_not()};
    if (ids) {  // one or none of each
        const auto there = request.lengths.contains(name) ? request.lengths.at(name) > 0 : at::ones({rows}, at::kBool);
        if (there.size(0) == rows && value.size(0) == there.sum().item<int64_t>())
            return {at::zeros({rows}, at::kLong).masked_scatter(there, value), there};
    }
    throw wire::BadRequest(400, "'" + name + "' must have one value per candidate, as candidates are cut by it");
}

}  // namespace

Pipeline::Pipeline(Models& models, const RankConfig& config)
    : model_(*models.at(config.model)),
      prerank_(config.prerank.empty() ? nullptr : models.at(config.prerank).get()),
      vectors_(config.vectors.empty() ? nullptr : models.at(config.vectors).get()), config_(config) {
    const auto load = [](const std::filesystem::path& file) {
        try {
            auto module = torch::jit::load(file.string());
            module.eval();
            return module;
        } catch (const std::exception&) {
            throw BadConfig(file.string() + " is no TorchScript file; see docs/guide/server.md for how to write it");
        }
    };
    if (prerank_ && !prerank_->config.cut.empty()) cut_ = load(prerank_->config.cut);
    if (!config.rerank.empty()) {
        rerank_ = load(config.rerank);
        const torch::NoGradGuard guard;
        for (int call = 0; call < 3; ++call) rerank_->forward({torch::rand({1, 32}), torch::rand({1, 32, 8})});
    }
    const auto names = joint();
    const auto check = [&](const About& about, const Model& of) {
        if (ordering(about.signature.scores, config.by).empty())
            throw BadConfig("rank: 'by' must name the score of " + of.name + " that orders, as it has several");
    };
    if (!config.by.empty() || rerank_) check(*names->rank, model_);
    if (prerank_) check(*names->prerank, *prerank_);
}

std::shared_ptr<const Joint> Pipeline::joint(const std::vector<std::string>& ids) {
    const auto rank = model_.about(), prerank = prerank_ ? prerank_->about() : nullptr;
    const auto vectors = vectors_ ? vectors_->about() : nullptr;
    const std::lock_guard lock(mutex_);
    if (joint_ && joint_->rank == rank && joint_->prerank == prerank && joint_->vectors == vectors && joint_->ids == ids)
        return joint_;
    auto joint = std::make_shared<Joint>(Joint{rank, prerank, vectors, rank->signature, rank->reads, ids});
    auto& signature = joint->signature;
    if (model_.config.kind == "retrieve") signature = signature.only(signature.towers.at("user"));
    if (prerank) {
        signature = signature.with(prerank->signature);
        joint->reads = joint->reads.with(prerank->reads);
        if (const auto& name = prerank_->config.regular; !name.empty()) {
            wire::Feature number;
            number.ids = false;
            signature.features.emplace(name, number);
        }
        if (const auto& name = prerank_->config.category; !name.empty()) signature.features.emplace(name, wire::Feature());
    }
    if (vectors) {
        signature = signature.with(vectors->signature.only(vectors->signature.towers.at("item")));
        joint->reads = joint->reads.with(vectors->reads);
    }
    const auto known = joint->reads.features.size();
    joint->reads = joint->reads.with(ids);
    for (auto at = known; at < joint->reads.features.size(); ++at) {
        wire::Feature id;
        id.looked_up = true;
        signature.features.emplace(joint->reads.features[at].name, id);
    }
    return joint_ = joint;
}

std::optional<std::vector<Outcome>> Pipeline::answer(const std::vector<Asked>& asked, const Joint& joint) {
    const torch::NoGradGuard guard;
    if (joins()) return retrieve(asked, joint);
    auto outcome = rank(*asked.at(0).first, asked[0].second, joint);
    if (!outcome) return {};
    return std::vector<Outcome>{std::move(*outcome)};
}

std::optional<Outcome> Pipeline::rank(const wire::Request& request, int64_t rows, const Joint& joint) {
    Outcome outcome;
    wire::Request kept = request;
    std::vector<int64_t> chosen(rows);
    std::iota(chosen.begin(), chosen.end(), 0);
    const bool all = rows == 0 || request.rows;
    if (prerank_ && !all) {
        const auto by = ordering(joint.prerank->signature.scores, config_.by);
        if (by.empty()) throw std::runtime_error(prerank_->name + " has no one score that orders");
        const auto scored = [&](const Served::State& state) {
            outcome.prerank = state.at("model.pt").rank(request.ids, request.lengths, request.dense).at(by);
        };
        if (!prerank_->use(joint.prerank, scored)) return {};
        chosen = cut(outcome.prerank, request);
        kept = some(request, chosen, rows);
    }
    Columns scores;
    const bool there = model_.use(joint.rank, [&](const Served::State& state) {
        outcome.answer.model = model_.stamp(state);
        auto& file = state.at("model.pt");
        if (chosen.empty())
            for (const auto& name : joint.rank->signature.scores) scores.insert(name, at::empty({0}));
        else if (request.rows) scores = file.forward(kept.ids, kept.lengths, kept.dense);
        else scores = file.rank(kept.ids, kept.lengths, kept.dense);
    });
    if (!there) return {};
    if (const auto by = ordering(joint.rank->signature.scores, config_.by); !by.empty() && !request.rows) {
        const auto score = scores.at(by);
        auto order = order_of(score);
        if (rerank_ && !chosen.empty()) {
            const auto list = rerank(kept, static_cast<int64_t>(chosen.size()), joint,
                                     joint.rank->probabilities.count(by) ? score.nan_to_num(0).logit(1e-7) : score);
            if (!list.defined()) return {};
            // What the list has no place for follows by score.
            std::vector<int64_t> places(list.data_ptr<int64_t>(), list.data_ptr<int64_t>() + list.numel());
            std::erase(places, -1);
            for (int64_t at = 0; at < order.numel(); ++at) {
                const auto place = order[at].item<int64_t>();
                if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
            }
            order = serve::places(places);
        }
        outcome.order = prerank_ && !all ? places(chosen).index_select(0, order) : order;
        outcome.answer.more.emplace_back("order", outcome.order.contiguous());
    }
    if (prerank_ && !all) {  // of candidates that were cut there is no score
        for (const auto& each : Columns(scores.copy()))
            scores.insert_or_assign(each.key(), at::full({rows}, std::nan(""), at::kFloat)
                                                    .index_put_({places(chosen)}, each.value()));
    }
    outcome.answer.scores = named(scores, joint.rank->signature);
    return outcome;
}

std::optional<std::vector<Outcome>> Pipeline::retrieve(const std::vector<Asked>& asked, const Joint& joint) {
    const auto air = model_.air();
    std::vector<Outcome> outcomes(asked.size());
    const auto all = joined(asked);
    at::Tensor users;
    const bool there = model_.use(joint.rank, [&](const Served::State& state) {
        for (auto& outcome : outcomes) outcome.answer.model = model_.stamp(state);
        users = state.at("user.pt").encode(all.ids, all.lengths, all.dense);
    });
    if (!there) return {};
    std::vector<Index::Asked> wanted;
    for (const auto& [request, rows] : asked)
        wanted.push_back({request->top > 0 ? request->top : model_.config.top, request->exclude});
    const auto found = joint.rank->index->search(users, wanted, air);
    for (size_t at = 0; at < found.size(); ++at) {
        auto& answer = outcomes[at].answer;
        answer.scores.emplace_back("score", torch::tensor(found[at].scores, torch::kFloat32));
        answer.more.emplace_back("items", torch::tensor(found[at].items, torch::kInt64));
        answer.names = found[at].names;
    }
    return outcomes;
}

// Returns the places of the candidates that go on to the ranker, rising.
std::vector<int64_t> Pipeline::cut(const at::Tensor& scores, const wire::Request& request) const {
    const auto rows = scores.size(0);
    at::Tensor kept;
    if (cut_) {
        const auto &by = prerank_->config.regular, &of = prerank_->config.category;
        auto regular = at::zeros({rows}, at::kBool);
        auto kinds = at::full({rows}, -1, at::kLong);
        if (!by.empty()) {
            const auto [value, there] = column(request, by, rows);
            regular = (value > 0).logical_and(there);
        }
        if (!of.empty()) {
            const auto [value, there] = column(request, of, rows);
            kinds = std::get<1>(at::_unique(value, true, true)).masked_fill(there.logical_not(), -1);
        }
        kept = torch::jit::Module(*cut_).forward({scores.unsqueeze(0), regular.unsqueeze(0), kinds.unsqueeze(0)}).toTensor()[0];
        kept = kept.masked_select(kept >= 0);
    } else {
        const auto order = order_of(scores);
        const auto numbers = scores.isnan().logical_not().sum().item<int64_t>();
        kept = order.slice(0, 0, std::min(prerank_->config.keep, numbers));
    }
    kept = std::get<0>(kept.sort());
    return {kept.data_ptr<int64_t>(), kept.data_ptr<int64_t>() + kept.numel()};
}

// Returns the places of the kept candidates in the order of the list, or nothing where the model was replaced.
at::Tensor Pipeline::rerank(const wire::Request& kept, int64_t rows, const Joint& joint, const at::Tensor& relevance) {
    for (const auto& name : joint.vectors->signature.towers.at("item")) {
        const auto given = kept.lengths.contains(name) ? kept.lengths.at(name)
                           : kept.ids.contains(name)   ? kept.ids.at(name)
                                                       : kept.dense.at(name);
        if (given.size(0) != rows)
            throw wire::BadRequest(400, "'" + name + "' must have a row per candidate, as " + vectors_->name +
                                            " makes a vector of each");
    }
    at::Tensor vectors;
    const auto made = [&](const Served::State& state) {
        vectors = state.at("item.pt").encode(kept.ids, kept.lengths, kept.dense);
    };
    if (!vectors_->use(joint.vectors, made)) return {};
    return torch::jit::Module(*rerank_).forward({relevance.unsqueeze(0), vectors.unsqueeze(0)}).toTensor()[0].contiguous();
}

}  // namespace serve
