// The JSON files of an export and of a pointer, read with the standard library alone.

#pragma once

#include <cctype>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

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
