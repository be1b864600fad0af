// Which features of a request a store fills, of the night that is in use.

#include "store.h"

#include <ATen/ATen.h>

#include "store_moment.h"

namespace store {

struct Store::Generation {
    std::string said;  // what it was made of
    std::string name;
    int64_t horizon;
    json plan;

    // Of what the store says of itself, `meta`. Raises Down.
    static std::shared_ptr<const Generation> of(const std::optional<std::string>& said) {
        if (!said) throw Down("store: it was never filled; `livetrain store fill` does");
        const auto meta = json::parse(*said, nullptr, false);
        if (!meta.is_object() || meta.value("format", 0) != 1) throw Down("store: it is of another format; fill a new one");
        return std::make_shared<Generation>(Generation{*said, meta.at("generation").get<std::string>(),
                                                       meta.at("horizon").get<int64_t>(), meta.at("plan")});
    }

    std::string text(const char* key) const { return plan.at(key).get<std::string>(); }
};

Reads Reads::parsed(std::string_view signature) {
    const json whole = json::parse(signature, nullptr, false);
    if (!whole.is_object() || !whole.contains("features")) throw std::runtime_error("store: this is no signature");
    static const std::map<std::string, int64_t> UNITS{{"s", 1}, {"ms", 1000}, {"us", 1'000'000}, {"ns", 1'000'000'000}};
    Reads reads;
    for (const auto& [name, told] : whole.at("features").items()) {
        const auto columns = told.value("columns", json::array());
        const auto type = told.at("type").get<std::string>();
        const bool two = columns.size() == 2 && (type == "age" || type == "bag");
        if (columns.size() != 1 && !two) continue;  // a cross, or what has times or vectors beside its ids
        Feature feature{name, type, columns[0].get<std::string>(), two ? columns[1].get<std::string>() : ""};
        feature.width = told.value("width", int64_t(1));
        if (told.contains("column_unit")) feature.ticks = UNITS.at(told.at("column_unit").get<std::string>());
        reads.features.push_back(std::move(feature));
    }
    return reads;
}

Reads Reads::with(const Reads& other) const {
    Reads made = *this;
    for (const auto& feature : other.features) {
        const auto same = [&](const Feature& own) { return own.name == feature.name; };
        if (std::none_of(features.begin(), features.end(), same)) made.features.push_back(feature);
    }
    return made;
}

Reads Reads::with(const std::vector<std::string>& ids) const {
    Reads made = *this;
    for (const auto& column : ids) {
        const auto taken = [&](const Feature& own) { return own.name == column || (own.type == "id" && own.column == column); };
        if (std::none_of(features.begin(), features.end(), taken)) made.features.push_back({column, "id", column, ""});
    }
    return made;
}

namespace {

bool of_ids(const std::string& type) {
    return type == "id" || type == "sequence" || type == "bag" || type == "hour" || type == "weekday";
}

bool lacking(const wire::Request& request, const wire::Signature& signature, const std::string& name) {
    const auto found = signature.features.find(name);
    return found != signature.features.end() && !found->second.looked_up && !request.ids.contains(name) &&
           !request.dense.contains(name);
}

// The seconds from one time to another.
float between(int64_t since, int64_t until, int64_t ticks) {
    if (since == NONE || until == NONE) return float(NOTHING);
    const auto seconds = [&](int64_t time) { return time / ticks - (time % ticks < 0); };
    const auto rest = [&](int64_t time) { return double(time - seconds(time) * ticks) / double(ticks); };
    return float(double(seconds(until)) - double(seconds(since)) + (rest(until) - rest(since)));
}

// Adds the weights of a row's ids, 1 of those that have none; false where they are not one of each id.
bool weigh(const Value& ids, const Value& weights, std::vector<float>& numbers) {
    if (weights.listed && weights.reals.size() != ids.ids.size()) return false;
    for (size_t at = 0; at < ids.ids.size(); ++at)
        numbers.push_back(weights.listed && !std::isnan(weights.reals[at]) ? float(weights.reals[at]) : 1.0f);
    return std::none_of(numbers.begin(), numbers.end(), [](float number) { return std::isinf(number); });
}

Words whole(const at::Tensor& tensor) {
    const auto plain = tensor.to(at::kLong).contiguous();
    return {plain.data_ptr<int64_t>(), plain.data_ptr<int64_t>() + plain.numel()};
}

// Ids of a column of the samples that the request gives, one each row; NONE for a row without.
std::optional<Words> given(const wire::Request& request, const Reads& reads, const std::string& column) {
    for (const auto& feature : reads.features) {
        if (feature.type != "id" || feature.column != column || !request.ids.contains(feature.name)) continue;
        const auto ids = whole(request.ids.at(feature.name));
        if (!request.lengths.contains(feature.name)) return ids;
        Words made;
        size_t at = 0;
        for (const auto length : whole(request.lengths.at(feature.name)))
            made.push_back(length && at < ids.size() ? ids[at++] : NONE);
        return made;
    }
    return std::nullopt;
}

}  // namespace

Store::Store(std::unique_ptr<Place> place) : place_(std::move(place)) {}
Store::~Store() = default;

std::shared_ptr<const Store::Generation> Store::generation() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (generation_) return generation_;
    }
    return learned(place_->get({"meta"})[0]);
}

std::shared_ptr<const Store::Generation> Store::learned(const std::optional<std::string>& said) {
    auto made = Generation::of(said);
    const std::lock_guard<std::mutex> lock(mutex_);
    return generation_ = std::move(made);
}

std::vector<std::string> Store::ids() {
    try {
        const auto known = generation();
        return {"user", known->text("item"), known->text("author")};
    } catch (const Down&) {
        return {};
    }
}

std::vector<std::string> Store::fill(wire::Request& request, const wire::Signature& signature, const Reads& reads,
                                     int64_t ms) {
    const auto lacks = [&](const Reads::Feature& feature) { return lacking(request, signature, feature.name); };
    if (request.rows || std::none_of(reads.features.begin(), reads.features.end(), lacks)) return {};
    auto now = generation();
    std::optional<Words> user, items;
    std::optional<Moment> moment;
    // A store that lost its content or was filled since then may have nothing under the name that is known.
    for (;; now = learned(moment->meta())) {
        user = given(request, reads, "user"), items = given(request, reads, now->text("item"));
        if (!user || user->size() != 1 || (*user)[0] == NONE) return {};
        auto authors = given(request, reads, now->text("author")).value_or(Words());
        if (!items || authors.size() != items->size()) authors.clear();
        moment.emplace(*place_, now->name, now->horizon, now->plan, ms, (*user)[0], items.value_or(Words()),
                       std::move(authors));
        if (moment->meta() == now->said) break;
    }
    std::vector<std::string> filled;
    for (const auto& feature : reads.features) {
        const bool ids = of_ids(feature.type), two = !feature.other.empty();
        const bool mine = moment->mine(feature.column) && (!two || moment->mine(feature.other));
        if (!lacks(feature) || (!items && !mine)) continue;
        const auto column = moment->column(feature.column);
        const auto other = two ? moment->column(feature.other) : column;
        if (!column || !other) continue;
        const auto rows = mine ? 1 : items->size();
        Words values, lengths;
        std::vector<float> numbers;
        bool fits = true;
        for (size_t row = 0; row < rows; ++row) {
            const auto& value = column->size() == 1 ? column->front() : column->at(row);
            const auto& second = other->size() == 1 ? other->front() : other->at(row);
            if (feature.type == "age") numbers.push_back(between(value.whole, second.whole, feature.ticks));
            if (feature.type == "age") continue;
            if (two) fits = weigh(value, second, numbers) && fits;
            if (feature.type == "sequence" || feature.type == "bag") {
                values.insert(values.end(), value.ids.begin(), value.ids.end());
                lengths.push_back(int64_t(value.ids.size()));
            } else if (ids) {
                if (value.whole != NONE) {
                    const auto rest = value.whole % feature.ticks;
                    values.push_back(value.whole / feature.ticks - (rest < 0));
                }
                lengths.push_back(value.whole != NONE);
            } else if (feature.type == "vector") {
                for (int64_t i = 0; i < feature.width; ++i)
                    numbers.push_back(size_t(i) < value.reals.size() ? float(value.reals[i]) : float(NOTHING));
            } else {
                numbers.push_back(value.whole != NONE ? float(value.whole) : float(value.real));
            }
        }
        if (!fits) continue;
        if (ids) {
            request.ids.insert(feature.name, at::tensor(values, at::kLong));
            request.lengths.insert(feature.name, at::tensor(lengths, at::kLong));
            if (two) request.dense.insert(feature.name, at::tensor(numbers, at::kFloat));
        } else {
            auto made = at::tensor(numbers, at::kFloat);
            request.dense.insert(feature.name, feature.width > 1 ? made.view({-1, feature.width}) : made);
        }
        filled.push_back(feature.name);
    }
    return filled;
}

std::string Store::needs(const wire::Request& request, const wire::Signature& signature, const Reads& reads) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto lacks = [&](const Reads::Feature& feature) { return lacking(request, signature, feature.name); };
    if (!generation_ || request.rows || std::none_of(reads.features.begin(), reads.features.end(), lacks)) return "";
    for (const auto& column : {std::string("user"), generation_->text("item"), generation_->text("author")})
        if (!given(request, reads, column)) return column;
    return "";
}

}  // namespace store
