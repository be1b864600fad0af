// What a server in C++ needs of an export besides libtorch: its JSON files, rows as its call takes them, mapped tables.

#pragma once

#include <torch/script.h>

#include <cctype>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "columns.h"

// A value of a JSON file. A number stays text: an id has up to 64 bits, of which a double holds 53.
struct Json {
    std::map<std::string, Json> members;
    std::vector<Json> entries;
    std::string text;

    const Json& at(const std::string& key) const {
        const auto found = members.find(key);
        if (found == members.end()) throw std::runtime_error("a JSON file has no '" + key + "'; export the run again");
        return found->second;
    }
};

class JsonReader {
  public:
    explicit JsonReader(const std::filesystem::path& path) : name_(path.filename().string()) {
        std::ifstream file(path);
        if (!file) throw std::runtime_error(path.string() + " cannot be read");
        text_.assign(std::istreambuf_iterator<char>(file), {});
    }

    Json value() {
        Json read;
        if (take('{')) {
            for (bool more = !take('}'); more; more = next('}')) {
                const std::string key = string();
                need(':');
                read.members.emplace(key, value());
            }
        } else if (take('[')) {
            for (bool more = !take(']'); more; more = next(']')) read.entries.push_back(value());
        } else if (peek() == '"') {
            read.text = string();
        } else {
            while (at_ < text_.size() && (std::isalnum(text_[at_]) || std::strchr("+-.", text_[at_])))
                read.text += text_[at_++];
            if (read.text.empty()) fail();
        }
        return read;
    }

  private:
    char peek() {
        while (at_ < text_.size() && std::isspace(text_[at_])) ++at_;
        return at_ < text_.size() ? text_[at_] : '\0';
    }
    bool take(char wanted) { return peek() == wanted && ++at_; }
    void need(char wanted) {
        if (!take(wanted)) fail();
    }
    bool next(char end) {  // whether another entry follows
        if (take(end)) return false;
        need(',');
        return true;
    }
    std::string string() {
        need('"');
        std::string read;
        while (at_ < text_.size() && text_[at_] != '"') {
            if (text_[at_] == '\\') ++at_;
            read += text_[at_++];
        }
        need('"');
        return read;
    }
    [[noreturn]] void fail() const {
        throw std::runtime_error(name_ + " is no JSON at byte " + std::to_string(at_) + "; export the run again");
    }

    std::string name_, text_;
    size_t at_ = 0;
};

inline void flatten(const Json& column, std::vector<std::string>& numbers) {
    if (column.entries.empty() && !column.text.empty()) numbers.push_back(column.text);
    for (const auto& entry : column.entries) flatten(entry, numbers);
}

// A column per feature or task: (N,), or (N, width) of a vector; null is a missing number.
inline Columns columns(const Json& part, bool whole) {
    Columns read;
    for (const auto& [name, column] : part.members) {
        std::vector<std::string> numbers;
        flatten(column, numbers);
        std::vector<int64_t> integers;
        std::vector<double> reals;
        for (const auto& number : numbers) {
            if (whole) integers.push_back(std::stoll(number));
            else reals.push_back(number == "null" ? std::nan("") : std::stod(number));
        }
        auto tensor = whole ? torch::tensor(integers, torch::kInt64) : torch::tensor(reals, torch::kFloat32);
        if (!column.entries.empty() && !column.entries[0].entries.empty())
            tensor = tensor.reshape({static_cast<int64_t>(column.entries.size()), -1});
        read.insert(name, tensor);
    }
    return read;
}

// Tables that lie in files of their own, mapped: rows are read as they are looked up.
inline Columns tables(const Json& stored, const std::filesystem::path& folder) {
    const std::map<std::string, at::ScalarType> types = {
        {"float32", torch::kFloat32}, {"float16", torch::kFloat16}, {"uint8", torch::kUInt8},
        {"int64", torch::kInt64}};
    Columns mapped;
    for (const auto& [name, table] : stored.members) {
        const auto rows = std::stoll(table.at("shape").entries.at(0).text);
        const auto width = std::stoll(table.at("shape").entries.at(1).text);
        const auto file = (folder / table.at("file").text).string();
        const auto numbers = torch::from_file(file, false, rows * width, types.at(table.at("dtype").text));
        mapped.insert(name, numbers.view({rows, width}));
    }
    return mapped;
}
