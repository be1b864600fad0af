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
#include "json.h"

// What went wrong, without torch's list of calls.
inline std::string said(const std::exception& error) {
    const auto* torch = dynamic_cast<const c10::Error*>(&error);
    return torch ? torch->what_without_backtrace() : error.what();
}

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
