// libFuzzer: the JSON of published files, which must be read as nlohmann-json reads it, and a signature's.

#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "../json.h"
#include "../wire.h"

static bool same(const Json& mine, const nlohmann::json& other) {
    if (other.is_object()) {
        if (mine.members.size() != other.size()) return false;
        for (const auto& [name, each] : other.items())
            if (!mine.members.count(name) || !same(mine.members.at(name), each)) return false;
    } else if (other.is_array()) {
        if (mine.entries.size() != other.size()) return false;
        for (size_t at = 0; at < other.size(); ++at)
            if (!same(mine.entries[at], other[at])) return false;
    } else if (other.is_string()) {
        return mine.text == other.get_ref<const std::string&>();
    } else if (other.is_number_integer()) {
        return std::strtod(mine.text.c_str(), nullptr) == other.get<double>();
    } else if (other.is_number()) {
        return std::stod(mine.text) == other.get<double>();
    } else {
        return mine.text == other.dump();
    }
    return true;
}

static int depth(const nlohmann::json& value) {
    int deepest = 0;
    if (value.is_structured())
        for (const auto& each : value) deepest = std::max(deepest, 1 + depth(each));
    return deepest;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string text(reinterpret_cast<const char*>(data), size);
    const auto shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth < 100; };
    const auto other = nlohmann::json::parse(text, shallow, false);
    // It passes over a mark of the byte order, and takes a zero byte for the end.
    const bool odd = text.rfind("\xEF", 0) == 0 || text.find('\0') != std::string::npos;
    const bool taken = !other.is_discarded() && !odd && depth(other) < 60;
    try {
        const auto mine = JsonReader("file.json", text).value();
        if (taken && !same(mine, other)) std::abort();
    } catch (const std::runtime_error&) {
        if (taken) std::abort();
    }
    try {
        wire::Signature::parsed(text);
    } catch (const std::runtime_error&) {
    }
    return 0;
}
