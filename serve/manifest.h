// The manifest of a published folder: which files it has, and their hashes.

#pragma once

#include "serving.h"
#include "xxh64.h"

inline std::string hash(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> part(1 << 20);
    Xxh64 found;
    while (file.read(part.data(), part.size()), file.gcount() > 0) found.update(part.data(), file.gcount());
    return found.hex();
}

// Returns the manifest of a folder whose files are as it says; with `seal` the hash that it must have itself.
inline Json checked(const std::filesystem::path& folder, const std::string& seal) {
    const auto manifest = folder / "manifest.json";
    if (!std::filesystem::exists(manifest) || (!seal.empty() && hash(manifest) != seal))
        throw std::runtime_error(manifest.string() + " is missing, or not what the pointer names; publish a new base");
    const auto content = JsonReader(manifest).value();
    for (const auto& [name, wanted] : content.at("files").members)
        if (!std::filesystem::exists(folder / name) || hash(folder / name) != wanted.at("xxh64").text)
            throw std::runtime_error((folder / name).string() + " is missing or damaged; publish a new base");
    return content;
}
