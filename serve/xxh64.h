// xxHash's 64-bit hash with seed 0: of files, and of ids that are strings.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

// Of what comes in parts.
class Xxh64 {
  public:
    void update(const char* data, size_t size) {
        total_ += size;
        while (size > 0) {
            const size_t taken = std::min(size, sizeof(held_) - filled_);
            std::memcpy(held_ + filled_, data, taken);
            filled_ += taken, data += taken, size -= taken;
            if (filled_ < sizeof(held_)) break;
            for (int lane = 0; lane < 4; ++lane) lanes_[lane] = round(lanes_[lane], word<uint64_t>(held_ + 8 * lane));
            filled_ = 0;
        }
    }
    uint64_t value() const {
        uint64_t hash = P5;
        if (total_ >= sizeof(held_)) {
            hash = turned(lanes_[0], 1) + turned(lanes_[1], 7) + turned(lanes_[2], 12) + turned(lanes_[3], 18);
            for (const auto lane : lanes_) hash = (hash ^ round(0, lane)) * P1 + P4;
        }
        hash += total_;
        size_t at = 0;
        for (; at + 8 <= filled_; at += 8) hash = turned(hash ^ round(0, word<uint64_t>(held_ + at)), 27) * P1 + P4;
        for (; at + 4 <= filled_; at += 4) hash = turned(hash ^ (word<uint32_t>(held_ + at) * P1), 23) * P2 + P3;
        for (; at < filled_; ++at) hash = turned(hash ^ (static_cast<unsigned char>(held_[at]) * P5), 11) * P1;
        hash = (hash ^ (hash >> 33)) * P2;
        hash = (hash ^ (hash >> 29)) * P3;
        return hash ^ (hash >> 32);
    }
    std::string hex() const {
        uint64_t hash = value();
        std::string text(16, '0');
        for (int place = 15; place >= 0; --place, hash >>= 4) text[place] = "0123456789abcdef"[hash & 15];
        return text;
    }

  private:
    static constexpr uint64_t P1 = 11400714785074694791u, P2 = 14029467366897019727u, P3 = 1609587929392839161u,
                              P4 = 9650029242287828579u, P5 = 2870177450012600261u;
    static uint64_t turned(uint64_t x, int by) { return (x << by) | (x >> (64 - by)); }
    static uint64_t round(uint64_t lane, uint64_t input) { return turned(lane + input * P2, 31) * P1; }
    template <typename Word>
    static uint64_t word(const char* at) {
        Word read;
        std::memcpy(&read, at, sizeof(read));
        return read;
    }

    uint64_t lanes_[4] = {P1 + P2, P2, 0, 0 - P1}, total_ = 0;
    char held_[32];
    size_t filled_ = 0;
};
