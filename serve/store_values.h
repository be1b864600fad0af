// The words of a feature store, and what they are made into.

#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace store {

inline constexpr int64_t NONE = std::numeric_limits<int64_t>::min();  // of a whole number that is missing
inline constexpr int64_t NEVER = std::numeric_limits<int64_t>::max();
inline constexpr double NOTHING = std::numeric_limits<double>::quiet_NaN();
inline constexpr int64_t WINDOW = 300'000, VISIT = 1'800'000, HOUR = 3'600'000, DAY = 86'400'000;  // ms
inline constexpr int64_t EXPOSURE = 0, CLICK = 1, LIKE = 4, GIFT = 32, WATCH = 128;
inline constexpr std::array<int64_t, 7> BITS{1, 2, 4, 8, 16, 32, 64};
inline constexpr std::array<int64_t, 8> COUNTED{EXPOSURE, 1, 2, 4, 8, 16, 32, 64};
inline const std::array<std::string, 3> DOMAINS{"live", "video", "people"};
inline constexpr int DOMAIN_ORDER[]{0, 2, 1};  // of their names

using Words = std::vector<int64_t>;
using Counts = std::array<int64_t, 8>;

inline double number(int64_t word) {
    double found;
    std::memcpy(&found, &word, sizeof found);
    return found;
}

// A value of a column: a whole number, a number, or a list of one of them.
struct Value {
    int64_t whole = NONE;
    double real = NOTHING;
    bool listed = false;  // of lists: there is one
    Words ids;
    std::vector<double> reals;
};

struct Event {
    int64_t domain, item, author, time, kind, value, session, topic;
    bool carried;

    auto rank() const {
        const bool unknown = std::isnan(number(value));
        return std::make_tuple(time, item, kind, DOMAIN_ORDER[domain], session == NONE, session, unknown,
                               unknown ? 0.0 : number(value));
    }
    auto same() const { return std::make_tuple(domain, item, author, time, kind, value, session); }
};

struct Entry {
    int64_t time, item, author, topic;
    std::array<int64_t, 7> known;
};

}  // namespace store
