// What both forms of a request are read with.

#pragma once

#include <ATen/ops/empty.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "wire.h"
#include "xxh64.h"

namespace wire::parts {

using json = nlohmann::json;

inline constexpr size_t kShown = 40;  // bytes of a caller's text that a sentence repeats
inline const char* const kHeader = "Inference-Header-Content-Length";

[[noreturn]] inline void refuse(const std::string& sentence, int status = 400) { throw BadRequest(status, sentence); }

inline std::string shown(std::string_view text) {
    std::string out = "'";
    for (const char each : text.substr(0, kShown)) out += static_cast<unsigned char>(each) < 32 ? '?' : each;
    return out + (text.size() > kShown ? "...'" : "'");
}

inline std::string listed(const std::vector<std::string>& names) {
    std::string out;
    for (size_t at = 0; at < names.size() && at < 6; ++at) out += (at ? ", " : "") + shown(names[at]);
    return out + (names.size() > 6 ? ", ..." : "");
}

inline json parsed(std::string_view text, const Limits& limits) {
    if (text.size() > limits.json)
        refuse("the JSON of the request has " + std::to_string(text.size()) + " bytes, and " +
                   std::to_string(limits.json) + " are allowed; send tensors in binary, or fewer candidates", 413);
    // nlohmann-json takes a zero byte for the end, and whatever follows it for nothing.
    if (const auto zero = text.find('\0'); zero != std::string_view::npos)
        refuse("the request is no JSON at byte " + std::to_string(zero + 1) + "; it has a zero byte there");
    const auto shallow = [&](int depth, json::parse_event_t, const json&) {
        if (depth > limits.depth)
            refuse("the JSON of the request is nested more than " + std::to_string(limits.depth) + " deep");
        return true;
    };
    try {
        auto found = json::parse(text.begin(), text.end(), shallow);
        if (!found.is_object()) refuse("the request must be a JSON object, as {\"user\": ..., \"candidates\": ...}");
        return found;
    } catch (const json::parse_error& error) {
        refuse("the request is no JSON at byte " + std::to_string(error.byte) + "; check what stands there; what is missing is null, not NaN");
    } catch (const json::exception&) {
        refuse("the JSON of the request has a number beyond all types; ids are 64-bit integers, numbers float32");
    }
}

inline std::string drawn() {
    static thread_local std::mt19937_64 random{std::random_device{}()};
    uint64_t number = random();
    std::string text(16, '0');
    for (auto& each : text) each = "0123456789abcdef"[number & 15], number >>= 4;
    return text;
}

inline int64_t now() {
    const auto since = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(since).count();
}

inline std::string id_of(const json& head, const char* key, const Limits& limits) {
    const auto found = head.find(key);
    if (found == head.end()) return drawn();
    if (!found->is_string() || found->get_ref<const std::string&>().size() > limits.text)
        refuse(std::string(key) + ": must be a string of at most " + std::to_string(limits.text) + " bytes");
    return found->get_ref<const std::string&>().empty() ? drawn() : found->get<std::string>();
}

// Counts what a request holds.
class Budget {
  public:
    explicit Budget(const Limits& limits) : limits_(limits) {}
    void take(size_t numbers) { fits(numbers), taken_ += numbers; }
    void fits(size_t numbers) const {
        if (taken_ + numbers > static_cast<size_t>(limits_.numbers))
            refuse("the request has more than " + std::to_string(limits_.numbers) +
                       " ids and numbers; send fewer candidates per request", 413);
    }
    void rows(const std::string& of, size_t count) const {
        if (count > static_cast<size_t>(limits_.rows))
            refuse(of + " has " + std::to_string(count) + " rows, and " + std::to_string(limits_.rows) +
                       " are allowed; send fewer candidates per request", 413);
    }

  private:
    const Limits& limits_;
    size_t taken_ = 0;
};

template <typename Number>
at::Tensor tensor(const std::vector<Number>& values, at::IntArrayRef shape) {
    auto made = at::empty(shape, std::is_same_v<Number, float> ? at::kFloat : at::kLong);
    if (!values.empty()) std::memcpy(made.data_ptr(), values.data(), values.size() * sizeof(Number));
    return made;
}

inline const Feature& known(const Signature& signature, std::string_view name, const std::string& where) {
    const auto found = signature.features.find(name);
    if (found != signature.features.end()) return found->second;
    std::vector<std::string> names;
    for (const auto& [each, feature] : signature.features) names.push_back(each);
    refuse(where + ": " + shown(name) + " is no feature that the model reads; it reads " + listed(names));
}

inline int64_t whole(const json& value, const std::string& where) {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{INT64_MAX});
    if (!fits) refuse(where + " must be a 64-bit integer");
    return value.get<int64_t>();
}

inline float number(const json& value, const std::string& where) {
    if (value.is_null()) return std::nanf("");
    const bool fits = value.is_number() && std::isfinite(static_cast<float>(value.get<double>()));
    if (!fits) refuse(where + " must be a float32 number, or null where it is missing");
    return static_cast<float>(value.get<double>());
}

inline int64_t id(const Feature& feature, const json& value, const std::string& where) {
    if (!value.is_string()) {
        if (feature.strings.value_or(false)) refuse(where + ": its ids are strings; give them as such");
        return whole(value, where);
    }
    if (!feature.strings.value_or(true)) refuse(where + ": its ids are integers, not strings");
    const auto& text = value.get_ref<const std::string&>();
    Xxh64 hash;
    hash.update(text.data(), text.size());
    return static_cast<int64_t>(hash.value());
}
inline void check_top(const Request& request, const Limits& limits) {
    if (request.top < 0 || request.top > limits.rows)
        refuse("top: must be from 1 to " + std::to_string(limits.rows) + ", the number of items asked for");
}

}  // namespace wire::parts
