// What a model reads and answers, by its signature.json.

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "wire.h"

namespace wire {

using json = nlohmann::json;

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

}  // namespace wire
