// What a store's states and events say of a request, as the samples of its moment had it.

#pragma once

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "store.h"
#include "store_values.h"

namespace store {

using nlohmann::json;

// What is known at one moment of one user and some candidates.
class Moment {
  public:
    Moment(Place& place, const std::string& generation, int64_t horizon, const json& plan, int64_t ms, int64_t user,
           Words items, Words authors)
        : plan_(plan), base_(generation + "/"), horizon_(horizon), ms_(ms), user_(user), items_(std::move(items)),
          authors_(std::move(authors)) {
        read(place);
    }

    // A column of the samples: a value of the user, or one of each candidate. Nothing where the store has none.
    std::optional<std::vector<Value>> column(const std::string& name) {
        const auto& columns = plan_.at("columns");
        if (!columns.contains(name)) return std::nullopt;
        const auto& how = columns.at(name);
        const auto is = how.at("is").get<std::string>(), of = how.value("of", std::string());
        const bool mine = how.at("user").get<bool>();
        std::vector<Value> made(mine ? 1 : items_.size());
        if (is == "context") return std::nullopt;
        if (is == "author" && authors_.empty()) return std::nullopt;
        for (size_t row = 0; row < made.size(); ++row) {
            auto& value = made[row];
            if (is == "user") value.whole = user_;
            else if (is == "item") value.whole = items_[row];
            else if (is == "author") value.whole = authors_[row];
            else if (is == "time") value.whole = ms_;
            else if (is == "hour") value.whole = local() / HOUR % 24;
            else if (is == "weekday") value.whole = (local() / DAY + 3) % 7;
            else if (is.rfind("room ", 0) == 0) value.real = room(is.substr(5), items_[row]);
            else if (is == "ids" || is == "bags" || is == "dense" || is == "vectors" || is == "age") {
                const auto key = keyed(plan_.at("attributes").at(of).at("key").get<std::string>(), row);
                if (!key) return std::nullopt;
                attribute(value, of, *key, is, name);
            } else if (is == "count" && how.at("from") == "others") {
                if (authors_.empty()) return std::nullopt;
                value.real = others(row, how.at("place").get<size_t>());
            } else if (is == "count" || is == "rate") {
                const auto counts = counted(how.at("from").get<std::string>(), of, row);
                if (!counts) return std::nullopt;
                const auto done = (*counts).first[how.at("place").get<size_t>()], shown = (*counts).first[0];
                if (is == "count") value.real = std::log1p(double(done));
                else if (shown) value.real = double(done) / double(shown);
            } else if (is == "ago") {
                const auto counts = counted("pairs", of, row);
                if (!counts) return std::nullopt;
                if ((*counts).first[0]) value.real = std::log1p(double(ms_ - (*counts).second) / 1000);
            } else if (is == "visit ago") value.real = visit_ago(of);
            else if (is.rfind("list ", 0) == 0) list(value, of, is.substr(5));
            else throw std::runtime_error("store: column " + name + " is made by '" + is + "', which this server does not know");
        }
        return made;
    }

    // What the store said of itself in the moment in which the rest was read.
    const std::optional<std::string>& meta() const { return meta_; }

    bool mine(const std::string& column) const {
        const auto& columns = plan_.at("columns");
        return columns.contains(column) && columns.at(column).at("user").get<bool>();
    }

  private:
    int64_t local() const { return ms_ + 1000 * plan_.at("utc_offset_s").get<int64_t>(); }

    std::optional<int64_t> keyed(const std::string& key, size_t row) const {
        if (key == "user") return user_;
        if (key == "item") return items_[row];
        if (authors_.empty()) return std::nullopt;
        return authors_[row];
    }

    void read(Place& place) {
        std::set<std::string> keys{"meta"};
        const auto want = [&](const std::string& kind, int64_t id) { keys.insert(kind + "/" + std::to_string(id)); };
        for (const auto& base : {base_, std::string("now/")}) {
            want(base + "events", user_);
            for (const auto item : items_) want(base + "room", item);
        }
        for (const auto& [name, _] : plan_.at("sequences").items()) want(base_ + "sequence." + name, user_);
        for (const auto& [how_name, how] : plan_.at("columns").items())
            if (how.at("is") == "ago") want(base_ + "pairs." + how.at("of").get<std::string>(), user_);
            else if (how.value("from", std::string()) == "others")
                for (const auto author : authors_) want(base_ + "topics", author);
        for (const auto& [prefix, key] : plan_.at("statistics").items())
            for (const auto id : ids_of(key.get<std::string>())) want(base_ + "statistics." + prefix, id);
        for (const auto& [prefix, known] : plan_.at("attributes").items()) {
            auto ids = known.at("key").is_null() ? Words() : ids_of(known.at("key").get<std::string>());
            ids.insert(ids.end(), items_.begin(), items_.end());  // some tell the items' topics
            for (const auto id : ids)
                for (const auto& base : {base_, std::string("now/")}) want(base + "attributes." + prefix, id);
        }
        const std::vector<std::string> asked(keys.begin(), keys.end());
        auto values = place.get(asked);
        for (size_t i = 0; i < asked.size(); ++i) {
            if (asked[i] == "meta") meta_ = std::move(values[i]);
            if (asked[i] == "meta" || !values[i]) continue;
            Words words(values[i]->size() / sizeof(int64_t));
            std::memcpy(words.data(), values[i]->data(), words.size() * sizeof(int64_t));
            values_[asked[i]] = std::move(words);
        }
        take_events();
    }

    Words ids_of(const std::string& key) const {
        return key == "user" ? Words{user_} : key == "item" ? items_ : authors_;
    }

    const Words& words(const std::string& kind, int64_t id) const {
        static const Words none;
        const auto found = values_.find(kind + "/" + std::to_string(id));
        return found == values_.end() ? none : found->second;
    }

    void take_events() {
        std::set<decltype(std::declval<Event>().same())> told;
        std::set<std::pair<int64_t, int64_t>> shown;
        const auto seen = [&](const Event& event) {
            if (event.kind == EXPOSURE) return !shown.insert({event.item, event.time}).second;
            return !told.insert(event.same()).second;
        };
        for (const bool carried : {true, false}) {
            const auto& row = words((carried ? base_ : "now/") + "events", user_);
            for (size_t at = 0; at + 8 <= row.size(); at += 8) {
                Event event{row[at],     row[at + 1], row[at + 2], row[at + 3], row[at + 4],
                            row[at + 5], row[at + 6], row[at + 7], carried};
                if (!carried && event.time < horizon_) continue;
                if (!seen(event) || carried) events_.push_back(event);
            }
        }
        std::stable_sort(events_.begin(), events_.end(),
                         [](const Event& a, const Event& b) { return a.rank() < b.rank(); });
    }

    // Counts up to the moment, and when the newest of the exposures was.
    std::optional<std::pair<Counts, int64_t>> counted(const std::string& from, const std::string& of, size_t row) {
        Counts counts{};
        const int64_t last = NONE;
        if (from == "statistics") {
            const auto id = keyed(plan_.at("statistics").at(of).get<std::string>(), row);
            if (!id) return std::nullopt;
            add(counts, words(base_ + "statistics." + of, *id), 0);
            return std::make_pair(counts, last);
        }
        if (from == "seen") {
            add(counts, words(base_ + "statistics.user", user_), 0);
            since_night(counts, [](const Event&) { return true; });
            return std::make_pair(counts, last);
        }
        if (from != "pairs") throw std::runtime_error("store: it counts by '" + from + "', which this server does not know");
        const auto key = pair_key(of);
        if (key == "author" && authors_.empty()) return std::nullopt;
        return paired(of, key, key == "item" ? items_[row] : key == "author" ? authors_[row] : topic(items_[row]));
    }

    // What the user had with one item, author or topic.
    std::pair<Counts, int64_t> paired(const std::string& prefix, const std::string& key, int64_t other) const {
        Counts counts{};
        int64_t last = NONE;
        if (other == NONE) return {counts, last};
        const auto& rows = words(base_ + "pairs." + prefix, user_);
        size_t low = 0, high = rows.size() / 10;
        while (low < high) {
            const size_t middle = (low + high) / 2;
            if (rows[10 * middle] < other) low = middle + 1;
            else high = middle;
        }
        if (10 * low < rows.size() && rows[10 * low] == other) {
            last = rows[10 * low + 1];
            add(counts, rows, 10 * low + 2);
        }
        const auto newest = since_night(counts, [&](const Event& event) {
            return other == (key == "item" ? event.item : key == "author" ? event.author : event.topic);
        });
        return {counts, std::max(last, newest)};
    }

    // Adds the events since the night that are `chosen`, and returns when the newest of their exposures was.
    template <typename Chosen>
    int64_t since_night(Counts& counts, const Chosen& chosen) const {
        const std::string domain = plan_.at("domain");
        int64_t last = NONE;
        for (const auto& event : events_) {
            if (event.time >= ms_) break;
            if (event.time < horizon_ || DOMAINS[event.domain] != domain || !chosen(event)) continue;
            const auto place = std::find(COUNTED.begin(), COUNTED.end(), event.kind);
            if (place == COUNTED.end()) continue;
            ++counts[place - COUNTED.begin()];
            if (event.kind == EXPOSURE) last = std::max(last, event.time);
        }
        return last;
    }

    // What the user had with the author's other topics: the mean, by how often each was shown on earlier days.
    double others(size_t row, size_t place) {
        const auto prefix = "user_" + plan_.at("topics").at(plan_.at("domain").get<std::string>())[1].get<std::string>();
        const auto own = topic(items_[row]);
        const auto& theirs = words(base_ + "topics", authors_[row]);
        int64_t sum = 0, shown = 0;
        for (size_t at = 0; at + 2 <= theirs.size(); at += 2) {
            if (theirs[at] == own) continue;
            sum += theirs[at + 1] * paired(prefix, "topic", theirs[at]).first[place];
            shown += theirs[at + 1];
        }
        return shown ? std::log1p(double(sum) / double(shown)) : NOTHING;
    }

    static void add(Counts& counts, const Words& words, size_t at) {
        for (size_t i = 0; i < counts.size() && at + i < words.size(); ++i) counts[i] += words[at + i];
    }

    std::string pair_key(const std::string& prefix) const {
        if (prefix == "user_" + plan_.at("author").get<std::string>()) return "author";
        return prefix == "user_" + plan_.at("item").get<std::string>() ? "item" : "topic";
    }

    int64_t topic(int64_t item) {
        const auto& told = plan_.at("topics").at(plan_.at("domain").get<std::string>());
        Value value;
        attribute(value, told[0].get<std::string>(), item, "ids", told[1].get<std::string>());
        return value.whole;
    }

    // What is known of an id just before the moment.
    void attribute(Value& value, const std::string& prefix, int64_t id, const std::string& kind,
                   const std::string& name) {
        const auto& known = plan_.at("attributes").at(prefix);
        const auto& now = words("now/attributes." + prefix, id);
        const bool newer = !now.empty() && now[0] >= horizon_;
        const Words& row = newer ? now : words(base_ + "attributes." + prefix, id);
        std::vector<std::pair<std::string, std::string>> columns;  // name, kind
        for (const auto* what : {"ids", "bags", "dense", "vectors"})
            for (const auto& column : known.at(what)) columns.emplace_back(column.get<std::string>(), what);
        if (!known.at("age").is_null()) columns.emplace_back("start", "start");
        const std::string wanted = kind == "age" ? "start" : name;
        const size_t masks = (columns.size() + 62) / 63;
        for (size_t at = newer ? 1 : 0; at < row.size();) {
            const auto since = row[at], until = row[at + 1];
            const size_t mask = at + 2;
            const bool here = since < ms_ && ms_ <= until;
            at = mask + masks;
            for (size_t bit = 0; bit < columns.size(); ++bit) {
                const auto& [column, of] = columns[bit];
                const bool list = of == "bags" || of == "vectors";
                const size_t length = list ? size_t(row[at]) : 1;
                if (list) ++at;
                const bool missing = (row[mask + bit / 63] >> (bit % 63)) & 1;
                if (here && column == wanted && !missing) {
                    if (of == "ids") value.whole = row[at];
                    else if (of == "start") value.real = row[at] < ms_ ? double(ms_ - row[at]) / 1000 : NOTHING;
                    else if (of == "dense") value.real = number(row[at]);
                    else value.listed = true;
                    for (size_t i = 0; list && i < length; ++i) {
                        if (of == "bags") value.ids.push_back(row[at + i]);
                        else value.reals.push_back(number(row[at + i]));
                    }
                }
                at += length;
            }
            if (here) return;
        }
    }

    double room(const std::string& what, int64_t id) const {
        const auto& base = words(base_ + "room", id);
        const auto& now = words("now/room", id);
        const int64_t begin = horizon_ - WINDOW, summed = now.empty() ? NONE : now[0];
        int64_t viewers = base.empty() ? 0 : base[0], likes = 0, gifts = 0;
        const size_t sums = now.empty() ? 0 : 2 + 2 * size_t(now[1]);
        for (size_t at = 2; at < sums; at += 2)
            if (now[at] >= begin && now[at] < ms_) viewers += now[at + 1];
        std::set<std::array<int64_t, 6>> told;
        const auto count = [&](const Words& words, size_t from, bool carried) {
            for (size_t at = from; at + 6 <= words.size(); at += 6) {
                std::array<int64_t, 6> event;
                std::copy_n(words.begin() + at, 6, event.begin());
                const auto time = event[2], kind = event[3];
                if (carried ? time >= horizon_ && time < summed : time < horizon_) continue;
                if (!told.insert(event).second && !carried) continue;
                if (time < begin || time >= ms_) continue;
                viewers += (kind == CLICK) - (kind == WATCH);
                likes += kind == LIKE && time >= ms_ - WINDOW;
                gifts += kind == GIFT && time >= ms_ - WINDOW;
            }
        };
        count(base, 1, true);
        count(now, sums, false);
        return double(what == "viewers" ? std::max<int64_t>(viewers, 0) : what == "likes" ? likes : gifts);
    }

    // The newest entries of a sequence before the moment.
    const std::vector<Entry>& entries(const std::string& name) {
        const auto made = entries_.find(name);
        if (made != entries_.end()) return made->second;
        const auto& how = plan_.at("sequences").at(name);
        const bool action = how.at("action").get<bool>();
        const size_t width = action ? 11 : 4;
        const auto domain = how.at("domain").get<std::string>();
        const auto kind = how.at("event").get<int64_t>();
        std::vector<Entry> found;
        const auto& row = words(base_ + "sequence." + name, user_);
        for (size_t at = 0; at + width <= row.size(); at += width) {
            Entry entry{row[at], row[at + 1], row[at + 2], row[at + 3], {}};
            for (size_t bit = 0; bit < 7; ++bit) entry.known[bit] = action ? row[at + 4 + bit] : NEVER;
            found.push_back(entry);
        }
        const auto part = [&](const Event& event) {
            return !event.carried && (event.kind == EXPOSURE || DOMAINS[event.domain] == domain);
        };
        for (const auto& event : events_) {
            if (!part(event) || event.kind != kind) continue;
            Entry entry{event.time, event.item, event.author == NONE ? -1 : event.author,
                        event.topic == NONE ? -1 : event.topic, {}};
            entry.known.fill(NEVER);
            found.push_back(entry);
        }
        std::stable_sort(found.begin(), found.end(), [](const Entry& a, const Entry& b) { return a.time < b.time; });
        for (const auto& event : events_) {
            const auto bit = std::find(BITS.begin(), BITS.end(), event.kind);
            if (!action || !part(event) || bit == BITS.end()) continue;
            const auto begun = event.session == NONE ? event.time : event.session;
            // The action is of the latest entry of its item at or before it began.
            for (auto entry = found.rbegin(); entry != found.rend(); ++entry)
                if (entry->item == event.item && entry->time <= begun) {
                    auto& known = entry->known[bit - BITS.begin()];
                    known = std::min(known, event.time);
                    break;
                }
        }
        const auto end = std::find_if(found.begin(), found.end(), [&](const Entry& e) { return e.time >= ms_; });
        found.erase(end, found.end());
        const auto limit = how.at("limit").get<size_t>();
        if (found.size() > limit) found.erase(found.begin(), found.end() - limit);
        return entries_[name] = std::move(found);
    }

    void list(Value& value, const std::string& name, const std::string& part) {
        value.listed = true;
        for (const auto& entry : entries(name)) {
            if (part == "item") value.ids.push_back(entry.item);
            else if (part == "author") value.ids.push_back(entry.author);
            else if (part == "topic") value.ids.push_back(entry.topic);
            else if (part == "gap") {
                auto seconds = std::max<int64_t>((ms_ - entry.time) / 1000, 1);
                int64_t power = -1;
                for (; seconds; seconds >>= 1) ++power;
                value.ids.push_back(power);
            } else {
                int64_t bits = 0;
                for (size_t bit = 0; bit < 7; ++bit) bits += entry.known[bit] < ms_ ? BITS[bit] : 0;
                value.ids.push_back(bits);
            }
        }
    }

    double visit_ago(const std::string& name) {
        const auto& found = entries(name);
        int64_t ended = -1;
        for (size_t i = 0; i < found.size(); ++i) {
            const auto following = i + 1 < found.size() ? found[i + 1].time : ms_;
            if (following - found[i].time > VISIT) ended = std::max(ended, found[i].time);
        }
        return ended < 0 ? NOTHING : std::log1p(double(ms_ - ended) / 1000);
    }

    const json& plan_;
    std::string base_;
    int64_t horizon_, ms_, user_;
    Words items_, authors_;
    std::optional<std::string> meta_;
    std::unordered_map<std::string, Words> values_;
    std::vector<Event> events_;
    std::map<std::string, std::vector<Entry>> entries_;
};

}  // namespace store
