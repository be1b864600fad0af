#include "config.h"

#include <fstream>
#include <iterator>
#include <set>
#include <thread>
#include <utility>

namespace serve {
namespace {

using nlohmann::json;

// An object of the file, whose keys are taken one by one; what is left over is nobody's.
class Section {
  public:
    Section(const json& value, std::string where) : where_(std::move(where)) {
        if (!value.is_object()) fail("must be an object, as {\"key\": value}");
        for (const auto& [key, each] : value.items()) left_.emplace(key, each);
    }

    json take(const std::string& key) {
        known_.insert(key);
        const auto found = left_.find(key);
        if (found == left_.end()) return nullptr;
        const json value = found->second;
        left_.erase(found);
        return value;
    }
    void text(const std::string& key, std::string& into) {
        const auto value = take(key);
        if (value.is_null()) return;
        if (!value.is_string() || value.get_ref<const std::string&>().empty())
            fail("'" + key + "' must be a string, not " + value.dump());
        into = value.get<std::string>();
    }
    void path(const std::string& key, std::filesystem::path& into) {
        std::string value;
        text(key, value);
        if (!value.empty()) into = value;
    }
    void number(const std::string& key, int64_t& into, int64_t least, int64_t most) {
        const auto value = take(key);
        if (value.is_null()) return;
        if (!value.is_number_integer() || value < least || value > most)
            fail("'" + key + "' must be a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
                 ", not " + value.dump());
        into = value.get<int64_t>();
    }
    void share(const std::string& key, double& into) {
        const auto value = take(key);
        if (value.is_null()) return;
        if (!value.is_number() || value < 0 || value > 1)
            fail("'" + key + "' must be a number from 0 to 1, not " + value.dump());
        into = value.get<double>();
    }
    void choice(const std::string& key, std::string& into, const std::set<std::string>& of) {
        text(key, into);
        if (!of.count(into)) fail("'" + key + "' must be " + listed(of) + ", not '" + into + "'");
    }
    void done() const {
        if (!left_.empty()) fail("'" + left_.begin()->first + "' is no key here; there are " + listed(known_));
    }
    [[noreturn]] void fail(const std::string& what) const { throw BadConfig(where_ + ": " + what); }

    static std::string listed(const std::set<std::string>& names) {
        std::string text;
        for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
        return text;
    }

  private:
    std::string where_;
    std::map<std::string, json> left_;
    std::set<std::string> known_;
};

ModelConfig model_of(const json& value, const std::string& where) {
    Section part(value, where);
    ModelConfig model;
    part.path("published", model.published);
    part.choice("kind", model.kind, {"rank", "prerank", "retrieve"});
    if (model.published.empty()) part.fail("'published' is missing; name the folder of the published versions");
    if (model.kind == "retrieve") {
        part.path("index", model.index);
        part.number("top", model.top, 1, 10'000);
        std::string air = "all";
        part.choice("air", air, {"all", "told"});
        model.told = air == "told";
        if (model.index.empty()) part.fail("'index' is missing; name the folder that `livetrain index --out` wrote");
    }
    if (model.kind == "prerank") {
        part.number("keep", model.keep, 1, 10'000);
        part.path("cut", model.cut);
        part.text("regular", model.regular);
        part.text("category", model.category);
        if ((model.keep == 0) == model.cut.empty()) part.fail("give either 'keep' or 'cut', a scripted Cut");
        if (model.cut.empty() && !(model.regular + model.category).empty())
            part.fail("'regular' and 'category' are features that a 'cut' reads; give it, or leave them out");
    }
    part.done();
    return model;
}

}  // namespace

Config read_config(const std::filesystem::path& file) {
    const auto name = file.filename().string();
    std::ifstream stream(file);
    if (!stream) throw BadConfig(file.string() + " cannot be read; name a file as docs/guide/server.md describes it");
    const std::string text(std::istreambuf_iterator<char>(stream), {});
    const auto content = json::parse(text, nullptr, false);
    if (content.is_discarded()) throw BadConfig(file.string() + " is no JSON; mend it");
    Section whole(content, name);
    Config config;
    int64_t port = config.port;
    config.threads = std::max(1u, std::thread::hardware_concurrency());
    whole.text("host", config.host);
    whole.number("port", port, 1, 65'535);
    whole.number("threads", config.threads, 1, 1024);
    whole.number("queue", config.queue, 1, 100'000);
    whole.number("deadline_ms", config.deadline_ms, 1, 3'600'000);
    whole.number("refresh_ms", config.refresh_ms, 10, 3'600'000);
    config.port = static_cast<int>(port);

    const auto models = whole.take("models");
    if (!models.is_object() || models.empty())
        whole.fail("'models' must name at least one model, as {\"din\": {\"published\": \"/models/din\"}}");
    std::map<std::string, std::set<std::string>> kinds;
    for (const auto& [each, about] : models.items()) {
        if (each.empty() || each.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") !=
                                std::string::npos)
            whole.fail("models: '" + each + "' must have letters, digits, '_', '-' and '.' alone, as it is part of addresses");
        config.models[each] = model_of(about, name + ": models." + each);
        kinds[config.models[each].kind].insert(each);
    }
    const auto only = [&](const std::string& kind) { return kinds[kind].size() == 1 ? *kinds[kind].begin() : ""; };

    config.rank.model = only("rank");
    config.retrieve = only("retrieve");
    if (const auto rank = whole.take("rank"); !rank.is_null()) {
        Section part(rank, name + ": rank");
        part.text("model", config.rank.model);
        if (!kinds["rank"].count(config.rank.model))
            part.fail("'model' must name a model of kind rank: " + Section::listed(kinds["rank"]));
        part.text("prerank", config.rank.prerank);
        if (!config.rank.prerank.empty() && !kinds["prerank"].count(config.rank.prerank))
            part.fail("'prerank' must name a model of kind prerank: " + Section::listed(kinds["prerank"]));
        part.text("by", config.rank.by);
        if (const auto rerank = part.take("rerank"); !rerank.is_null()) {
            Section dpp(rerank, name + ": rank.rerank");
            dpp.path("file", config.rank.rerank);
            dpp.text("vectors", config.rank.vectors);
            if (config.rank.rerank.empty()) dpp.fail("'file' is missing; name a scripted DPP");
            if (!kinds["retrieve"].count(config.rank.vectors))
                dpp.fail("'vectors' must name a model of kind retrieve, whose item.pt makes them: " +
                         Section::listed(kinds["retrieve"]));
            dpp.done();
        }
        part.done();
    }
    if (const auto retrieve = whole.take("retrieve"); !retrieve.is_null()) {
        Section part(retrieve, name + ": retrieve");
        part.text("model", config.retrieve);
        if (!kinds["retrieve"].count(config.retrieve))
            part.fail("'model' must name a model of kind retrieve: " + Section::listed(kinds["retrieve"]));
        part.done();
    }
    config.store = whole.take("store");
    if (const auto log = whole.take("log"); !log.is_null()) {
        Section part(log, name + ": log");
        part.path("path", config.log.path);
        part.share("share", config.log.share);
        part.number("rows", config.log.rows, 1, 10'000'000);
        part.number("seconds", config.log.seconds, 1, 86'400);
        part.done();
        if (config.log.path.empty()) part.fail("'path' is missing; name the folder of the logs");
    }
    whole.done();
    return config;
}

}  // namespace serve
