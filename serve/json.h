// The JSON files of an export and of a pointer, read with the standard library alone.

#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
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
    JsonReader(std::string name, std::string text) : name_(std::move(name)), text_(std::move(text)) {}

    // The whole file. What is no JSON, or goes on after it, is an exception.
    Json value() {
        Json read = one(0);
        if (peek() != '\0' || at_ < text_.size()) fail();
        return read;
    }

  private:
    Json one(int depth) {
        if (depth > kDeepest) fail();
        Json read;
        if (take('{')) {
            for (bool more = !take('}'); more; more = next('}')) {
                const std::string key = string();
                need(':');
                read.members.insert_or_assign(key, one(depth + 1));
            }
        } else if (take('[')) {
            for (bool more = !take(']'); more; more = next(']')) read.entries.push_back(one(depth + 1));
        } else if (peek() == '"') {
            read.text = string();
        } else {
            while (at_ < text_.size() && kBare.find(text_[at_]) != std::string_view::npos) read.text += text_[at_++];
            if (read.text.empty()) fail();
        }
        return read;
    }
    char peek() {
        while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
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
        for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
            if (text_[at_] == '\\') escaped(read);
            else read += text_[at_];
        }
        need('"');
        return read;
    }
    void escaped(std::string& read) {  // from a backslash to the escape's last character
        static constexpr std::string_view names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
        const char name = ++at_ < text_.size() ? text_[at_] : '\0';
        if (const auto place = names.find(name); place != std::string_view::npos) {
            read += meant[place];
            return;
        }
        if (name != 'u') fail();
        uint32_t code = unit();
        if (code >= 0xD800 && code < 0xDC00) {  // half of a character; the other one follows
            at_ += 2;
            if (at_ >= text_.size() || text_[at_ - 1] != '\\' || text_[at_] != 'u') fail();
            const uint32_t low = unit();
            if (low < 0xDC00 || low > 0xDFFF) fail();
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        } else if (code >= 0xDC00 && code < 0xE000) {
            fail();
        }
        const auto add = [&](uint32_t byte) { read += static_cast<char>(byte); };
        if (code < 0x80) add(code);
        else if (code < 0x800) add(0xC0 | code >> 6), add(0x80 | (code & 63));
        else if (code < 0x10000) add(0xE0 | code >> 12), add(0x80 | (code >> 6 & 63)), add(0x80 | (code & 63));
        else add(0xF0 | code >> 18), add(0x80 | (code >> 12 & 63)), add(0x80 | (code >> 6 & 63)), add(0x80 | (code & 63));
    }
    uint32_t unit() {  // the four digits after a u
        uint32_t code = 0;
        for (int digit = 0; digit < 4; ++digit) {
            const char each = ++at_ < text_.size() ? text_[at_] : '\0';
            const auto value = std::string_view("0123456789abcdef").find(each >= 'A' && each <= 'F' ? each + 32 : each);
            if (value == std::string_view::npos) fail();
            code = code << 4 | static_cast<uint32_t>(value);
        }
        return code;
    }
    [[noreturn]] void fail() const {
        throw std::runtime_error(name_ + " is no JSON at byte " + std::to_string(at_) + "; export the run again");
    }

    static constexpr int kDeepest = 64;
    static constexpr std::string_view kBare = "0123456789+-.abcdefghijklmnopqrstuvwxyzEIN";  // numbers, null, NaN, ...
    std::string name_, text_;
    size_t at_ = 0;
};
