// Requests with binary tensors.

#include <ATen/ops/from_blob.h>

#include <bit>
#include <set>

#include "wire_parts.h"

namespace wire {

using namespace parts;

static_assert(std::endian::native == std::endian::little, "tensors are sent little-endian");

namespace {

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

}  // namespace

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

}  // namespace wire
