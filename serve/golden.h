// The golden rows of an export: what a file that was loaded must score, before anybody is served by it.

#pragma once

#include <algorithm>

#include "scorer.h"

class Golden {
  public:
    explicit Golden(const Json& rows)
        : ids(columns(rows.at("ids"), true)), lengths(columns(rows.at("lengths"), true)),
          dense(columns(rows.at("dense"), false)), scores(columns(rows.at("scores"), false)),
          tolerance_(std::stod(rows.at("tolerance").text)) {}

    // Scores the rows so often that the calls of requests come after TorchScript has compiled: the first ones take
    // seconds. `rank` gets lists once, as the first row's are those of one user. Then compares; what does not score as
    // it must is an exception.
    void prove(const std::map<std::string, std::shared_ptr<Scorer>>& files, int calls) const {
        const torch::NoGradGuard guard;
        auto own_ids = ids.copy(), own_lengths = lengths.copy(), own_dense = dense.copy();
        for (const auto& counts : lengths) {
            if (counts.value().numel() == 0 || !(counts.value() > 1).any().item<bool>()) continue;
            const auto& name = counts.key();
            const auto first = counts.value()[0].item<int64_t>();
            own_lengths.insert_or_assign(name, counts.value().narrow(0, 0, 1));
            own_ids.insert_or_assign(name, ids.at(name).narrow(0, 0, first));
            if (dense.contains(name)) own_dense.insert_or_assign(name, dense.at(name).narrow(0, 0, first));
        }
        for (int call = 0; call < calls; ++call) {
            for (const auto& [file, scorer] : files) {
                if (file != "model.pt") scorer->encode(ids, lengths, dense);
                else scorer->forward(ids, lengths, dense), scorer->rank(own_ids, own_lengths, own_dense);
            }
        }
        const auto user = files.find("user.pt"), item = files.find("item.pt"), model = files.find("model.pt");
        if (model != files.end()) {
            const auto found = model->second->forward(ids, lengths, dense);
            const auto ranked = model->second->rank(ids, lengths, dense);
            for (const auto& wanted : scores) {
                near(wanted.key(), found.at(wanted.key()), wanted.value());
                near(wanted.key() + " of rank", ranked.at(wanted.key()), wanted.value());
            }
        }
        if (user != files.end() && item != files.end()) {
            const auto asked = user->second->encode(ids, lengths, dense);  // (B, w), or (B, K, w)
            auto made = item->second->encode(ids, lengths, dense);
            if (asked.dim() == 3) made = made.unsqueeze(1);
            auto products = (asked * made).sum(-1);
            if (products.dim() == 2) products = std::get<0>(products.max(1));
            for (const auto& wanted : scores) near("the towers' product", products, wanted.value());
        }
    }

    const Columns ids, lengths, dense, scores;

  private:
    void near(const std::string& what, const at::Tensor& found, const at::Tensor& wanted) const {
        const auto close = (found - wanted).abs() <= tolerance_ * wanted.abs().clamp_min(1);
        const auto same = close.logical_or(found.isnan().logical_and(wanted.isnan()));
        if (!found.sizes().equals(wanted.sizes()) || !same.all().item<bool>())
            throw std::runtime_error("golden rows: " + what + " is not what golden.json says; publish the model again");
    }

    double tolerance_;
};
