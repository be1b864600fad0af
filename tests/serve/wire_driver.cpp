// Reads requests and says what became of each, a JSON line per line of its input. For tests/serve.
//
//     wire_driver SIGNATURE      lines: "json FILE" or "binary HEADER FILE", HEADER as in the field of HTTP, or "-"
//     wire_driver SIGNATURE ANSWER      also what is answered with the scores in ANSWER, as hex

#include <ATen/ops/empty.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "../../serve/wire.h"

using json = nlohmann::ordered_json;

static std::string text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

static json told(const at::Tensor& values) {
    auto list = json::array();
    for (int64_t at = 0; at < values.numel(); ++at)
        if (values.scalar_type() == at::kFloat) list.push_back(values.data_ptr<float>()[at]);
        else list.push_back(values.data_ptr<int64_t>()[at]);
    return {{"shape", values.sizes().vec()}, {"values", list}};
}

static json told(const Columns& columns) {
    auto all = json::object();
    for (const auto& entry : columns) all[entry.key()] = told(entry.value());
    return all;
}

static std::string hex(const std::string& bytes) {
    std::string out;
    for (const unsigned char each : bytes) out += "0123456789abcdef"[each >> 4], out += "0123456789abcdef"[each & 15];
    return out;
}

static wire::Answer answered(const json& content, std::vector<std::vector<float>>& scores) {
    wire::Answer answer;
    answer.model = {"din", "20261130", 7, 2};
    for (const auto& [task, values] : content.items()) {
        scores.push_back(values.get<std::vector<float>>());
        auto made = at::Tensor(at::empty({static_cast<int64_t>(scores.back().size())}, at::kFloat));
        std::copy(scores.back().begin(), scores.back().end(), made.data_ptr<float>());
        answer.scores.emplace_back(task, made);
    }

    return answer;
}

int main(int count, char** arguments) {
    const auto signature = wire::Signature::read(arguments[1]);
    std::vector<std::vector<float>> scores;
    wire::Answer answer;
    if (count > 2) answer = answered(json::parse(text(arguments[2])), scores);
    for (std::string kind, field, path; std::cin >> kind;) {
        if (kind == "binary") std::cin >> field;
        std::cin >> path;
        const auto body = text(path);
        json line;
        try {
            const auto request = kind == "json" ? wire::parse_json(body, signature)
                                                : wire::parse_binary(body, wire::header_length(field == "-" ? "" : field, body.size()), signature);
            line = {{"id", request.id},           {"rows", request.rows},       {"count", wire::check(request, signature)},
                    {"ids", told(request.ids)},   {"lengths", told(request.lengths)}, {"dense", told(request.dense)},
                    {"channel", request.channel}, {"exclude", request.exclude}, {"top", request.top}};
            if (count > 2) {
                const auto reply = wire::answer_binary(request, answer);
                line["answer"] = {{"header", reply.header}, {"body", hex(reply.body)}, {"people", wire::answer_json(request, answer)}};
            }
        } catch (const wire::BadRequest& error) {
            line = {{"status", error.status}, {"body", wire::error_json(error.what())}};
        }
        std::cout << line.dump() << std::endl;
    }
    std::cout << wire::metadata_json(signature, answer.model) << std::endl;
}
