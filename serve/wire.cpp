#include "wire.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "xxh64.h"

namespace wire {

using json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "tensors are sent little-endian");

namespace {

constexpr size_t kShown = 40;  // bytes of a caller's text that a sentence repeats
const char* const kHeader = "Inference-Header-Content-Length";

[[noreturn]] void refuse(const std::string& sentence, int status = 400) { throw BadRequest(status, sentence); }

std::string shown(std::string_view text) {
    std::string out = "'";
    for (const char each : text.substr(0, kShown)) out += static_cast<unsigned char>(each) < 32 ? '?' : each;
    return out + (text.size() > kShown ? "...'" : "'");
}

std::string listed(const std::vector<std::string>& names) {
    std::string out;
    for (size_t at = 0; at < names.size() && at < 6; ++at) out += (at ? ", " : "") + shown(names[at]);
    return out + (names.size() > 6 ? ", ..." : "");
}

json parsed(std::string_view text, const Limits& limits) {
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

std::string drawn() {
    static thread_local std::mt19937_64 random{std::random_device{}()};
    uint64_t number = random();
    std::string text(16, '0');
    for (auto& each : text) each = "0123456789abcdef"[number & 15], number >>= 4;
    return text;
}

int64_t now() {
    const auto since = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(since).count();
}

std::string id_of(const json& head, const char* key, const Limits& limits) {
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

const Feature& known(const Signature& signature, std::string_view name, const std::string& where) {
    const auto found = signature.features.find(name);
    if (found != signature.features.end()) return found->second;
    std::vector<std::string> names;
    for (const auto& [each, feature] : signature.features) names.push_back(each);
    refuse(where + ": " + shown(name) + " is no feature that the model reads; it reads " + listed(names));
}

int64_t whole(const json& value, const std::string& where) {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{INT64_MAX});
    if (!fits) refuse(where + " must be a 64-bit integer");
    return value.get<int64_t>();
}

float number(const json& value, const std::string& where) {
    if (value.is_null()) return std::nanf("");
    const bool fits = value.is_number() && std::isfinite(static_cast<float>(value.get<double>()));
    if (!fits) refuse(where + " must be a float32 number, or null where it is missing");
    return static_cast<float>(value.get<double>());
}

int64_t id(const Feature& feature, const json& value, const std::string& where) {
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

// ---- binary tensors ----

struct Input {
    std::string name, type;
    std::vector<int64_t> shape;
    size_t count = 1;
};

Input described(const json& given, size_t place, const Limits& limits) {
    const auto where = "inputs: entry " + std::to_string(place);
    if (!given.is_object()) refuse(where + " must be an object with name, datatype and shape");
    Input input;
    for (const auto& [key, text] : {std::pair{"name", &input.name}, std::pair{"datatype", &input.type}}) {
        const auto found = given.find(key);
        if (found == given.end() || !found->is_string()) refuse(where + " needs a " + key + ", a string");
        *text = found->get<std::string>();
    }
    const auto shape = given.find("shape");
    if (shape == given.end() || !shape->is_array() || shape->empty() || shape->size() > 2)
        refuse("inputs: " + shown(input.name) + " needs a shape of one or two sizes, as [500]");
    for (const auto& each : *shape) {
        const auto size = whole(each, "inputs: the shape of " + shown(input.name));
        if (size < 0) refuse("inputs: the shape of " + shown(input.name) + " has a negative size");
        if (size > limits.numbers || input.count * static_cast<size_t>(size) > static_cast<size_t>(limits.numbers))
            refuse("inputs: " + shown(input.name) + " has more than " + std::to_string(limits.numbers) + " numbers", 413);
        input.count *= static_cast<size_t>(size);
        input.shape.push_back(size);
    }
    return input;
}

void flat(const json& data, std::vector<const json*>& found) {
    for (const auto& each : data)
        if (each.is_array()) flat(each, found);
        else found.push_back(&each);
}

at::Tensor viewed(std::string_view bytes, const Input& input, at::ScalarType type) {
    if (reinterpret_cast<uintptr_t>(bytes.data()) % 8 == 0 && !bytes.empty())  // a model never writes to what it is given
        return at::from_blob(const_cast<char*>(bytes.data()), input.shape, at::TensorOptions(type));
    auto made = at::empty(input.shape, type);
    if (!bytes.empty()) std::memcpy(made.data_ptr(), bytes.data(), bytes.size());
    return made;
}

std::vector<std::string> texts(std::string_view bytes, const Input& input, const Limits& limits) {
    std::vector<std::string> found;
    for (uint32_t size; found.size() < input.count; found.emplace_back(bytes.substr(0, size)), bytes.remove_prefix(size)) {
        if (bytes.size() < sizeof(size)) refuse("inputs: " + shown(input.name) + " ends before its last string");
        std::memcpy(&size, bytes.data(), sizeof(size));
        bytes.remove_prefix(sizeof(size));
        if (size > bytes.size() || size > limits.text)
            refuse("inputs: " + shown(input.name) + " has a string longer than its bytes, or than " +
                   std::to_string(limits.text));
    }
    if (!bytes.empty()) refuse("inputs: " + shown(input.name) + " has bytes left after its last string");
    return found;
}

// The bytes of a tensor that lie behind the JSON, or nothing where its values stand in the JSON.
std::optional<std::string_view> behind(const json& given, const Input& input, std::string_view& rest) {
    const auto parameters = given.find("parameters");
    if (parameters == given.end() || !parameters->is_object() || !parameters->contains("binary_data_size")) return {};
    const auto size = whole(parameters->at("binary_data_size"), "inputs: binary_data_size of " + shown(input.name));
    if (size < 0 || static_cast<size_t>(size) > rest.size())
        refuse("inputs: " + shown(input.name) + " is to have " + std::to_string(size) + " bytes, and the body has " +
               std::to_string(rest.size()) + " left; check binary_data_size and " + kHeader);
    const auto bytes = rest.substr(0, static_cast<size_t>(size));
    rest.remove_prefix(bytes.size());
    return bytes;
}

template <typename Number, typename Read>
at::Tensor read(const json& given, const Input& input, std::string_view& rest, Read one) {
    constexpr bool real = std::is_same_v<Number, float>;
    const std::string type = real ? "FP32" : "INT64";
    if (input.type != type)
        refuse("inputs: " + shown(input.name) + " has the datatype " + shown(input.type) + "; send it as " + type);
    if (const auto bytes = behind(given, input, rest)) {
        if (bytes->size() != input.count * sizeof(Number))
            refuse("inputs: " + shown(input.name) + " has " + std::to_string(bytes->size()) + " bytes, and its shape needs " +
                   std::to_string(input.count * sizeof(Number)));
        return viewed(*bytes, input, real ? at::kFloat : at::kLong);
    }
    const auto data = given.find("data");
    if (data == given.end() || !data->is_array())
        refuse("inputs: " + shown(input.name) + " needs its values, as binary_data_size or as data, a list");
    std::vector<const json*> entries;
    flat(*data, entries);
    if (entries.size() != input.count)
        refuse("inputs: " + shown(input.name) + " has " + std::to_string(entries.size()) + " values, and its shape needs " +
               std::to_string(input.count));
    std::vector<Number> values;
    for (const auto* each : entries) values.push_back(one(*each, "inputs: a value of " + shown(input.name)));
    return tensor(values, input.shape);
}

std::vector<std::string> channels(const json& given, const Input& input, std::string_view& rest, const Limits& limits) {
    if (input.type != "BYTES") refuse("inputs: 'channel' has the datatype " + shown(input.type) + "; send it as BYTES");
    if (const auto bytes = behind(given, input, rest)) return texts(*bytes, input, limits);
    const auto data = given.find("data");
    std::vector<std::string> found;
    if (data == given.end() || !data->is_array()) refuse("inputs: 'channel' needs its values, as data, a list");
    for (const auto& each : *data) {
        if (!each.is_string() || each.get_ref<const std::string&>().size() > limits.text)
            refuse("inputs: 'channel' must hold strings of at most " + std::to_string(limits.text) + " bytes");
        found.push_back(each.get<std::string>());
    }
    return found;
}

void take(const json& given, const Input& input, std::string_view& rest, const Signature& signature,
          const Limits& limits, Request& request) {
    if (input.name == "channel") {
        request.channel = channels(given, input, rest, limits);
        return;
    }
    if (input.name == "exclude") {
        const auto items = read<int64_t>(given, input, rest, whole);
        request.exclude.assign(items.data_ptr<int64_t>(), items.data_ptr<int64_t>() + items.numel());
        return;
    }
    const auto dot = input.name.find('.');
    const auto part = input.name.substr(0, dot);
    if (dot == std::string::npos || (part != "ids" && part != "lengths" && part != "dense"))
        refuse("inputs: " + shown(input.name) + " must be named ids.FEATURE, lengths.FEATURE or dense.FEATURE");
    const auto name = input.name.substr(dot + 1);
    const auto& feature = known(signature, name, "inputs");
    if (part != "dense") {
        if (!feature.ids) refuse("inputs: " + shown(name) + " has numbers and no ids; name the tensor dense." + name);
        if (input.shape.size() != 1) refuse("inputs: " + shown(input.name) + " must have one dimension");
        (part == "ids" ? request.ids : request.lengths).insert(name, read<int64_t>(given, input, rest, whole));
        return;
    }
    if (feature.ids && feature.beside.empty())
        refuse("inputs: " + shown(name) + " has ids and no numbers; name the tensor ids." + name);
    const auto numbers = read<float>(given, input, rest, number);
    const auto* values = numbers.data_ptr<float>();
    for (int64_t at = 0; at < numbers.numel(); ++at)
        if (std::isinf(values[at]))
            refuse("inputs: number " + std::to_string(at) + " of " + shown(input.name) + " is infinite; NaN is missing");
    request.dense.insert(name, numbers);
}

void parameters(const json& head, Request& request) {
    const auto found = head.find("parameters");
    if (found != head.end()) {
        if (!found->is_object()) refuse("parameters: must be an object, as {\"rows\": true}");
        for (const auto& [key, flag] : {std::pair{"rows", &request.rows}, std::pair{"binary_data_output", &request.binary}}) {
            const auto given = found->find(key);
            if (given == found->end()) continue;
            if (!given->is_boolean()) refuse(std::string("parameters: ") + key + " must be true or false");
            *flag = given->get<bool>();
        }
        if (found->contains("top")) request.top = whole(found->at("top"), "parameters: top");
    }
    const auto outputs = head.find("outputs");
    if (outputs == head.end()) return;
    if (!outputs->is_array()) refuse("outputs: must be a list, as [{\"name\": \"click\"}]");
    std::set<std::string> seen;
    for (const auto& each : *outputs) {
        if (!each.is_object() || !each.contains("name") || !each.at("name").is_string())
            refuse("outputs: each needs a name, a string");
        bool binary = request.binary;
        if (const auto about = each.find("parameters"); about != each.end()) {
            if (!about->is_object()) refuse("outputs: parameters must be an object");
            if (const auto flag = about->find("binary_data"); flag != about->end()) {
                if (!flag->is_boolean()) refuse("outputs: binary_data must be true or false");
                binary = flag->get<bool>();
            }
        }
        auto name = each.at("name").get<std::string>();
        // So a small request gets no large answer.
        if (!seen.insert(name).second) refuse("outputs: " + shown(name) + " is there twice; name it once");
        request.outputs.push_back({std::move(name), binary});
    }
}

void check_top(const Request& request, const Limits& limits) {
    if (request.top < 0 || request.top > limits.rows)
        refuse("top: must be from 1 to " + std::to_string(limits.rows) + ", the number of items asked for");
}

// ---- JSON for people ----

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

// ---- signatures ----

Signature Signature::parsed(std::string_view text) {
    try {
        const auto content = json::parse(text.begin(), text.end());
        Signature signature;
        for (const auto& [name, about] : content.at("features").items()) {
            if (!about.contains("dtype")) continue;  // the file makes it of others
            Feature feature;
            feature.ids = about.at("dtype") == "int64";
            feature.lists = about.contains("max_length");
            feature.width = about.value("width", int64_t{1});
            for (const auto* beside : {"weights", "vectors", "times"})
                if (about.contains(beside) && !about.at(beside).is_null()) feature.beside = beside;
            if (!feature.beside.empty())
                feature.beside_width = about.value("beside", int64_t{feature.beside == "vectors" ? 0 : 1});
            if (about.contains("ids") && about.at("ids").is_string()) feature.strings = about.at("ids") == "strings";
            if (feature.width < 1 || feature.beside_width < 0) throw std::runtime_error("a width below 1");
            signature.features.emplace(name, feature);
        }
        if (content.contains("tasks"))
            for (const auto& [name, about] : content.at("tasks").items()) signature.scores.push_back(name);
        if (content.contains("fusion")) signature.scores.push_back(content.at("fusion").at("name").get<std::string>());
        if (content.contains("towers"))
            for (const auto* side : {"user", "item"})
                signature.towers[side] = content.at("towers").at(side).get<std::vector<std::string>>();
        return signature;
    } catch (const std::exception& error) {
        throw std::runtime_error(std::string("signature.json cannot be read (") + error.what() + "); export the run again");
    }
}

Signature Signature::read(const std::filesystem::path& file) {
    std::ifstream stream(file);
    const std::string text(std::istreambuf_iterator<char>(stream), {});
    return parsed(text);
}

Signature Signature::with(const Signature& other) const {
    Signature both = *this;
    for (const auto& [name, feature] : other.features) {
        const auto [place, added] = both.features.emplace(name, feature);
        const auto& mine = place->second;
        if (!added && (mine.ids != feature.ids || mine.lists != feature.lists || mine.width != feature.width ||
                       mine.beside != feature.beside))
            throw std::runtime_error("two models that answer together read the feature '" + name +
                                     "' in different ways; name it otherwise in one recipe");
    }
    return both;
}

Signature Signature::only(const std::vector<std::string>& names) const {
    Signature part = *this;
    const std::set<std::string, std::less<>> kept(names.begin(), names.end());
    std::erase_if(part.features, [&](const auto& each) { return !kept.count(each.first); });
    return part;
}

// ---- requests ----

size_t header_length(std::string_view field, size_t body) {
    if (field.empty()) return body;
    size_t length = 0;
    for (const char each : field) {
        if (each < '0' || each > '9' || field.size() > 18)
            refuse(std::string(kHeader) + " must be the number of bytes of the JSON, not " + shown(field));
        length = 10 * length + static_cast<size_t>(each - '0');
    }
    if (length > body)
        refuse(std::string(kHeader) + " is " + std::to_string(length) + ", and the body has " + std::to_string(body) + " bytes");
    return length;
}

Request parse_binary(std::string_view body, size_t header, const Signature& signature, const Limits& limits) {
    if (body.size() > limits.bytes)
        refuse("the body has " + std::to_string(body.size()) + " bytes, and " + std::to_string(limits.bytes) +
                   " are allowed; send fewer candidates per request", 413);
    if (header > body.size()) refuse(std::string(kHeader) + " is more than the body has bytes");
    const auto head = parsed(body.substr(0, header), limits);
    auto rest = body.substr(header);
    Request request;
    request.id = id_of(head, "id", limits);
    request.time = now();
    parameters(head, request);
    check_top(request, limits);
    const auto inputs = head.find("inputs");
    if (inputs == head.end() || !inputs->is_array()) {
        const bool people = head.contains("user") || head.contains("candidates") || head.contains("rows");
        refuse(std::string("inputs: the list of tensors is missing") +
               (people ? "; this address takes tensors, JSON with user and candidates goes to /rank or /retrieve" : ""));
    }
    Budget budget(limits);
    std::set<std::string> seen;
    size_t place = 0;
    for (const auto& given : *inputs) {
        const auto input = described(given, place++, limits);
        if (!seen.insert(input.name).second) refuse("inputs: " + shown(input.name) + " is there twice; send it once");
        budget.take(input.count);
        take(given, input, rest, signature, limits, request);
    }
    if (!rest.empty())
        refuse("the body has " + std::to_string(rest.size()) + " bytes after the last tensor; check binary_data_size and " +
               kHeader);
    return request;
}

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
