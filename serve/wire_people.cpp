// Requests in JSON for people.

#include "wire_parts.h"

namespace wire {

using namespace parts;

namespace {

struct Column {
    std::vector<int64_t> ids, lengths;
    std::vector<float> numbers;
    int64_t width = 0;  // of what lies beside ids
};

void numbers_of(const json& value, int64_t width, const std::string& where, Column& column) {
    if (width == 1) {
        column.numbers.push_back(number(value, where));
    } else if (value.is_null()) {
        column.numbers.insert(column.numbers.end(), width, std::nanf(""));
    } else if (!value.is_array() || value.size() != static_cast<size_t>(width)) {
        refuse(where + " must be a list of " + std::to_string(width) + " numbers");
    } else {
        for (const auto& each : value) column.numbers.push_back(number(each, where));
    }
}

void list_of(const Feature& feature, const json& given, const std::string& where, const Budget& budget, Column& column) {
    const bool with = !feature.beside.empty();
    if (given.is_null()) {
        column.lengths.push_back(0);
        return;
    }
    const json* ids = &given;
    if (with) {
        if (!given.is_object() || !given.contains("ids") || !given.contains(feature.beside) ||
            !given.at(feature.beside).is_array())
            refuse(where + " must be {\"ids\": [...], \"" + feature.beside + "\": [...]}, a number or vector of each id");
        ids = &given.at("ids");
    }
    if (!ids->is_array()) refuse(where + " must be a list of ids, or null");
    for (const auto& each : *ids) column.ids.push_back(id(feature, each, where));
    column.lengths.push_back(static_cast<int64_t>(ids->size()));
    if (!with) return;
    const auto& beside = given.at(feature.beside);
    if (beside.size() != ids->size())
        refuse(where + " has " + std::to_string(ids->size()) + " ids and " + std::to_string(beside.size()) + " " + feature.beside);
    if (!beside.empty() && !column.width)
        column.width = feature.beside_width ? feature.beside_width
                       : beside[0].is_array() ? static_cast<int64_t>(beside[0].size()) : 1;
    budget.fits(column.numbers.size() + beside.size() * static_cast<size_t>(column.width));  // a null is short, its vector is not
    for (const auto& each : beside) numbers_of(each, column.width, where, column);
}

void row_of(const Feature& feature, const json& value, const std::string& where, const Budget& budget, Column& column) {
    if (!feature.ids) {
        numbers_of(value, feature.width, where, column);
    } else if (feature.lists) {
        list_of(feature, value, where, budget, column);
    } else {
        if (!value.is_null()) column.ids.push_back(id(feature, value, where));
        column.lengths.push_back(value.is_null() ? 0 : 1);
    }
}

void put(const std::string& name, const Feature& feature, const Column& column, Request& request) {
    const auto size = [](const auto& values) { return static_cast<int64_t>(values.size()); };
    const auto shaped = [&](int64_t width) {
        if (width > 1) return tensor(column.numbers, {size(column.numbers) / width, width});
        return tensor(column.numbers, {size(column.numbers)});
    };
    if (feature.ids) {
        request.ids.insert(name, tensor(column.ids, {size(column.ids)}));
        request.lengths.insert(name, tensor(column.lengths, {size(column.lengths)}));
        if (!feature.beside.empty()) request.dense.insert(name, shaped(column.width));
    } else {
        request.dense.insert(name, shaped(feature.width));
    }
}

void table(const json& head, const std::string& part, const Signature& signature, Budget& budget, Request& request) {
    const auto found = head.find(part);
    if (found == head.end()) return;
    if (!found->is_object()) refuse(part + ": must be an object, as {\"video\": " + (part == "user" ? "31}" : "[31, 8]}"));
    const bool one = part == "user";
    const std::pair<const std::string, json>* first = nullptr;
    for (const auto& entry : found->get_ref<const json::object_t&>()) {
        const auto& [name, given] = entry;
        const auto& feature = known(signature, name, part);
        const auto where = part + ": " + shown(name);
        Column column;
        if (one) {
            row_of(feature, given, where, budget, column);
        } else {
            if (!given.is_array()) refuse(where + " must be a list with a value per " + (part == "rows" ? "row" : "candidate"));
            budget.rows(where, given.size());
            for (const auto& each : given) row_of(feature, each, where, budget, column);
        }
        budget.take(column.ids.size() + column.lengths.size() + column.numbers.size());
        if (request.ids.contains(name) || (!feature.ids && request.dense.contains(name)))
            refuse(where + " is in user, too; give it once");
        put(name, feature, column, request);
        if (!first) first = &entry;
        if (!one && first->second.size() != given.size())
            refuse(where + " has " + std::to_string(given.size()) + " values and " + shown(first->first) + " has " +
                   std::to_string(first->second.size()));
    }
}

}  // namespace

Request parse_json(std::string_view body, const Signature& signature, const Limits& limits) {
    const auto head = parsed(body, limits);
    Request request;
    for (const auto& [key, value] : head.items())
        if (key != "user" && key != "candidates" && key != "rows" && key != "request_id" && key != "channel" &&
            key != "exclude" && key != "top")
            refuse(shown(key) + " is no part of a request; it has user, candidates, rows, request_id, channel, exclude, top");
    request.id = id_of(head, "request_id", limits);
    request.time = now();
    request.rows = head.contains("rows");
    if (request.rows && (head.contains("user") || head.contains("candidates")))
        refuse("rows: give either rows, or user and candidates");
    if (!request.rows && !head.contains("user") && !head.contains("candidates"))
        refuse("user: a request has the features of user and candidates, or rows");
    Budget budget(limits);
    for (const auto* part : {"user", "candidates", "rows"}) table(head, part, signature, budget, request);
    if (const auto found = head.find("channel"); found != head.end()) {
        if (!found->is_array()) refuse("channel: must be a list with a string per candidate");
        for (const auto& each : *found) {
            if (!each.is_string() || each.get_ref<const std::string&>().size() > limits.text)
                refuse("channel: must hold strings of at most " + std::to_string(limits.text) + " bytes");
            request.channel.push_back(each.get<std::string>());
        }
    }
    if (const auto found = head.find("exclude"); found != head.end()) {
        if (!found->is_array()) refuse("exclude: must be a list of items");
        budget.take(found->size());
        for (const auto& each : *found) request.exclude.push_back(id(Feature{}, each, "exclude: an item"));
    }
    if (head.contains("top")) request.top = whole(head.at("top"), "top");
    check_top(request, limits);
    return request;
}

}  // namespace wire
