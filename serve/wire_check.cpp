// What a request must have once all of it is there, and what is answered.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "wire.h"

namespace wire {

using ordered = nlohmann::ordered_json;

namespace {

std::string text(int64_t number) { return std::to_string(number); }

[[noreturn]] void refuse(const std::string& sentence, int status = 400) { throw BadRequest(status, sentence); }

// Of a feature of ids: the rows that it has.
int64_t rows_of_ids(const std::string& name, const Feature& feature, const Request& request) {
    const auto ids = request.ids.find(name);
    if (ids == request.ids.end())
        refuse("'" + name + "' is missing; send ids." + name + ", or {\"" + name + "\": ...} in JSON");
    const auto count = ids->value().numel();
    const auto found = request.lengths.find(name);
    int64_t rows = count;
    if (found != request.lengths.end()) {
        const auto& lengths = found->value();
        const auto* length = lengths.data_ptr<int64_t>();
        rows = lengths.numel();
        int64_t sum = 0;
        for (int64_t row = 0; row < rows; ++row) {
            if (length[row] < 0 || length[row] > count - sum)
                refuse("lengths." + name + ": " + text(length[row]) + " of row " + text(row) + " is negative, or more than '" +
                       name + "' has ids left; the lengths add up to the number of ids");
            if (!feature.lists && length[row] > 1)
                refuse("lengths." + name + ": row " + text(row) + " has " + text(length[row]) + " ids, and '" + name +
                       "' has one or none per row");
            sum += length[row];
        }
        if (sum != count)
            refuse("lengths." + name + " add up to " + text(sum) + ", and '" + name + "' has " + text(count) + " ids");
    } else if (feature.lists) {
        refuse("lengths." + name + " is missing; '" + name + "' has lists, so send how many ids each row has");
    }
    if (feature.beside.empty()) return rows;
    const auto beside = request.dense.find(name);
    if (beside == request.dense.end())
        refuse("dense." + name + " is missing: the " + feature.beside + " of its ids");
    const auto& numbers = beside->value();
    const auto width = numbers.dim() == 2 ? numbers.size(1) : 1;
    if (numbers.numel() + count == 0) return rows;
    if (numbers.size(0) != count || (feature.beside_width && width != feature.beside_width))
        refuse("dense." + name + " has " + text(numbers.size(0)) + " x " + text(width) + " numbers, and '" + name + "' has " +
               text(count) + " ids with " + (feature.beside_width ? text(feature.beside_width) : "some") + " each");
    return rows;
}

int64_t rows_of_numbers(const std::string& name, const Feature& feature, const Request& request) {
    const auto found = request.dense.find(name);
    if (found == request.dense.end())
        refuse("'" + name + "' is missing; send dense." + name + ", or {\"" + name + "\": ...} in JSON");
    const auto& numbers = found->value();
    const auto width = numbers.dim() == 2 ? numbers.size(1) : 1;
    if (feature.width == 1 && numbers.dim() != 1)
        refuse("dense." + name + " has two dimensions, and '" + name + "' is one number per row; send one");
    if (numbers.numel() && width != feature.width)
        refuse("dense." + name + " has " + text(width) + " numbers per row, and '" + name + "' has " + text(feature.width));
    return numbers.size(0);
}

void append(const Output& output, const at::Tensor& given, ordered& head, std::string& bytes) {
    const auto values = given.contiguous();
    const bool real = values.scalar_type() == at::kFloat;
    ordered about = {{"name", output.name}, {"datatype", real ? "FP32" : "INT64"}, {"shape", values.sizes().vec()}};
    if (output.binary) {
        about["parameters"] = {{"binary_data_size", values.nbytes()}};
        bytes.append(static_cast<const char*>(values.data_ptr()), values.nbytes());
    } else {
        auto data = ordered::array();
        for (int64_t at = 0; at < values.numel(); ++at)
            if (real) data.push_back(values.data_ptr<float>()[at]);
            else data.push_back(values.data_ptr<int64_t>()[at]);
        about["data"] = std::move(data);
    }
    head["outputs"].push_back(std::move(about));
}

void append(const Output& output, const std::vector<std::string>& texts, ordered& head, std::string& bytes) {
    ordered about = {{"name", output.name}, {"datatype", "BYTES"}, {"shape", {texts.size()}}};
    if (output.binary) {
        const auto before = bytes.size();
        for (const auto& each : texts) {
            const auto size = static_cast<uint32_t>(each.size());
            bytes.append(reinterpret_cast<const char*>(&size), sizeof size).append(each);
        }
        about["parameters"] = {{"binary_data_size", bytes.size() - before}};
    } else {
        about["data"] = texts;
    }
    head["outputs"].push_back(std::move(about));
}

std::string dumped(const ordered& content) { return content.dump(-1, ' ', false, ordered::error_handler_t::replace); }

}  // namespace

int64_t check(const Request& request, const Signature& signature, const Limits& limits) {
    int64_t rows = 1;
    std::string first, one;  // a feature with so many rows, and one with a single row
    for (const auto& [name, feature] : signature.features) {
        if (feature.looked_up && !request.ids.contains(name)) continue;
        const auto found = feature.ids ? rows_of_ids(name, feature, request) : rows_of_numbers(name, feature, request);
        if (found > limits.rows)
            refuse("'" + name + "' has " + text(found) + " rows, and " + text(limits.rows) +
                       " are allowed; send fewer candidates per request", 413);
        if (found == 1 && one.empty()) one = name;
        if (found != 1 && first.empty()) first = name, rows = found;
        if (found != 1 && found != rows)
            refuse("'" + first + "' has " + text(rows) + " rows and '" + name + "' has " + text(found) +
                   "; features of candidates have one row per candidate, those of the user one");
    }
    if (request.rows && !first.empty() && !one.empty())
        refuse("'" + one + "' has one row and '" + first + "' has " + text(rows) +
               "; with rows every feature has as many, without it those of the user have one");
    if (!request.channel.empty() && static_cast<int64_t>(request.channel.size()) != rows)
        refuse("channel has " + std::to_string(request.channel.size()) + " strings, and there are " + text(rows) +
               " candidates");
    return rows;
}

Reply answer_binary(const Request& request, const Answer& answer) {
    ordered head = {{"model_name", answer.model.name},
                    {"model_version", answer.model.version},
                    {"id", request.id},
                    {"parameters", {{"fence", answer.model.fence}, {"delta", answer.model.delta}}},
                    {"outputs", ordered::array()}};
    Named all = answer.scores;
    all.insert(all.end(), answer.more.begin(), answer.more.end());
    std::string bytes;
    bool binary = request.binary;
    if (request.outputs.empty()) {
        for (const auto& [name, values] : all) append({name, request.binary}, values, head, bytes);
    }
    for (const auto& output : request.outputs) {
        if (output.name == "names" && !answer.names.empty()) {
            append(output, answer.names, head, bytes);
            binary = binary || output.binary;
            continue;
        }
        const auto found = std::find_if(all.begin(), all.end(), [&](const auto& each) { return each.first == output.name; });
        if (found == all.end()) {
            std::string names;
            for (const auto& [name, values] : all) names += (names.empty() ? "" : ", ") + name;
            refuse("outputs: '" + output.name.substr(0, 40) + "' is none of the answer's, " + names.substr(0, 150));
        }
        append(output, found->second, head, bytes);
        binary = binary || output.binary;
    }
    Reply reply{dumped(head), 0, binary};
    if (!binary) return reply;
    reply.body.append((8 - reply.body.size() % 8) % 8, ' ');  // so that the tensors are aligned
    reply.header = reply.body.size();
    reply.body += bytes;
    return reply;
}

std::string answer_json(const Request& request, const Answer& answer) {
    ordered scores = ordered::object(), body = {{"request_id", request.id}};
    const auto list = [](const at::Tensor& given) {
        const auto values = given.contiguous();
        auto found = ordered::array();
        for (int64_t at = 0; at < values.numel(); ++at)
            if (values.scalar_type() == at::kFloat) found.push_back(values.data_ptr<float>()[at]);
            else found.push_back(values.data_ptr<int64_t>()[at]);
        return found;
    };
    for (const auto& [name, values] : answer.scores) scores[name] = list(values);
    body["scores"] = std::move(scores);
    for (const auto& [name, values] : answer.more)
        body[name] = name == "items" && !answer.names.empty() ? ordered(answer.names) : list(values);
    body["model"] = {{"name", answer.model.name},
                     {"version", answer.model.version},
                     {"fence", answer.model.fence},
                     {"delta", answer.model.delta}};
    return dumped(body);
}

std::string error_json(std::string_view sentence) { return dumped({{"error", sentence}}); }

std::string metadata_json(const Signature& signature, const Stamp& model) {
    auto inputs = ordered::array(), outputs = ordered::array();
    const auto add = [&](const std::string& name, const char* type, const std::vector<int64_t>& shape) {
        inputs.push_back({{"name", name}, {"datatype", type}, {"shape", shape}});
    };
    for (const auto& [name, feature] : signature.features) {
        if (feature.ids) add("ids." + name, "INT64", {-1}), add("lengths." + name, "INT64", {-1});
        const auto width = feature.ids ? feature.beside_width : feature.width;
        if (!feature.ids || !feature.beside.empty())
            add("dense." + name, "FP32", width > 1 ? std::vector<int64_t>{-1, width} : std::vector<int64_t>{-1});
    }
    for (const auto& name : signature.scores) outputs.push_back({{"name", name}, {"datatype", "FP32"}, {"shape", {-1}}});
    return dumped({{"name", model.name},
                   {"versions", {model.version}},
                   {"platform", "livetrain"},
                   {"inputs", inputs},
                   {"outputs", outputs}});
}

}  // namespace wire
