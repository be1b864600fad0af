#include "model.h"

#include <iostream>

namespace serve {
namespace {

std::string text(const std::filesystem::path& file) {
    std::ifstream stream(file);
    return std::string(std::istreambuf_iterator<char>(stream), {});
}

std::vector<std::string> files_of(const std::string& kind) {
    return kind == "retrieve" ? std::vector<std::string>{"user.pt", "item.pt"} : std::vector<std::string>{"model.pt"};
}

std::vector<int64_t> keys_of(const nlohmann::json& change, const char* part, bool strings) {
    std::vector<int64_t> keys;
    if (!change.contains(part)) return keys;
    if (!change.at(part).is_array()) throw wire::BadRequest(400, std::string(part) + ": must be a list of items");
    for (const auto& key : change.at(part)) {
        if (strings ? !key.is_string() : !key.is_number_integer())
            throw wire::BadRequest(400, std::string(part) + ": entry " + std::to_string(keys.size()) +
                                            " is no item of this index, whose keys are " +
                                            (strings ? "strings" : "whole numbers") + "; give them as keys.txt has them");
        if (!strings) {
            keys.push_back(key.get<int64_t>());
            continue;
        }
        Xxh64 hash;
        const auto& text = key.get_ref<const std::string&>();
        hash.update(text.data(), text.size());
        keys.push_back(static_cast<int64_t>(hash.value()));
    }
    return keys;
}

}  // namespace

Model::Model(std::string name, ModelConfig config) : name(std::move(name)), config(std::move(config)) {
    const auto pointer = this->config.published / "current.json";
    if (!std::filesystem::exists(pointer))
        throw std::runtime_error(pointer.string() + " is missing; publish a model there first");
    const bool retrieves = this->config.kind == "retrieve";
    if (!this->config.told) air_ = std::make_shared<Air>();
    served_ = std::make_unique<Served>(
        this->config.published, files_of(this->config.kind), [this](const auto& state) { return complete(state); }, !retrieves);
}

std::shared_ptr<const void> Model::complete(const Served::State& state) {
    auto about = std::make_shared<About>();
    about->signature = wire::Signature::read(state.base / "signature.json");
    const auto signature = text(state.base / "signature.json");
    about->reads = store::Reads::parsed(signature);
    const auto content = nlohmann::json::parse(signature);
    for (const auto& [task, each] : content.at("tasks").items())
        if (each.at("output") == "probability") about->probabilities.insert(task);
    if (config.kind != "retrieve") return about;
    const auto pointer = config.index / "current.json";
    if (!std::filesystem::exists(pointer))
        throw std::runtime_error(pointer.string() + " is missing; build the index with `livetrain index " +
                                 config.published.string() + " --out " + config.index.string() + "`");
    const auto seen = text(pointer);
    const auto folder = config.index / JsonReader(pointer).value().at("folder").text;
    checked(folder, "");
    about->index = std::make_shared<Index>(folder);
    if (about->index->model() != hash(state.base / "manifest.json"))
        throw NotYet(folder.string() + " is no index of " + state.folder + "; build it with `livetrain index " +
                     config.published.string() + " --out " + config.index.string() + "`");
    index_seen_ = seen;
    return about;
}

void Model::refresh(std::chrono::milliseconds every) {
    const auto now = std::chrono::steady_clock::now();
    std::string pointers;
    try {
        const auto index = config.kind == "retrieve" ? text(config.index / "current.json") : "";
        pointers = text(config.published / "current.json") + index;  // throws where a disk gives an error
        if (pointers == tried_ && now < again_) return;
        const bool other = !index.empty() && index != index_seen_;
        const bool moved = served_->refresh(other);
        if (const auto& now_served = served_->state(); moved)
            std::cerr << name << ": serves version " << now_served.version << ", fence " << now_served.fence << ", delta "
                      << now_served.number << std::endl;
        const std::lock_guard lock(mutex_);
        swaps_ += moved, failed_.clear(), waits_.clear();
        wait_ = every, tried_.clear();
    } catch (const std::exception& error) {
        const auto sentence = said(error);
        const bool waits = dynamic_cast<const NotYet*>(&error) != nullptr;
        const std::lock_guard lock(mutex_);
        if (!waits) ++failures_;
        if (sentence != failed_ + waits_) std::cerr << name << ": " << sentence << "; it serves on what it has" << std::endl;
        failed_ = waits ? "" : sentence, waits_ = waits ? sentence : "";
        // The same again is tried later and later: hashing many gigabytes takes the disk from others.
        wait_ = pointers == tried_ ? std::min<std::chrono::milliseconds>(2 * wait_, std::chrono::minutes(1)) : every;
        tried_ = pointers, again_ = now + wait_;
    }
}

std::shared_ptr<const About> Model::about() {
    return served_->use([](const Served::State& state) { return std::static_pointer_cast<const About>(state.beside); });
}

wire::Stamp Model::stamp(const Served::State& state) const {
    return {name, state.version, state.fence, static_cast<int64_t>(state.number)};
}

void Model::change_air(const nlohmann::json& change) {
    if (config.kind != "retrieve") throw wire::BadRequest(400, "'" + name + "' retrieves nothing; name a model with an index");
    if (!change.is_object()) throw wire::BadRequest(400, "a change is an object with on and off, or only");
    for (const auto& [key, value] : change.items())
        if (key != "on" && key != "off" && key != "only")
            throw wire::BadRequest(400, "'" + key.substr(0, 40) + "' is no part of a change; it has on and off, or only");
    const auto index = about()->index;
    const bool strings = index->strings();
    const auto on = keys_of(change, "on", strings), off = keys_of(change, "off", strings);
    const std::unordered_set<int64_t> shown(on.begin(), on.end());
    for (const auto key : off)
        if (shown.count(key)) throw wire::BadRequest(400, "on, off: an item is in both; name it in one of them");
    if (change.contains("only") && change.size() > 1) throw wire::BadRequest(400, "only: give it without on and off");
    const auto only = keys_of(change, "only", strings);
    const std::lock_guard lock(mutex_);
    if (change.contains("only")) air_ = std::make_shared<Air>(Air{{}, true, 0}.changed(only, {}, *index));
    else if (air_) air_ = std::make_shared<Air>(air_->changed(on, off, *index));
    else throw wire::BadRequest(400, "only: must come first, as nothing is known yet of what is on the air");
}

std::shared_ptr<const Air> Model::air() const {
    const std::lock_guard lock(mutex_);
    if (!air_) throw wire::BadRequest(503, "what is on the air is not known yet: POST it to /v2/models/" + name + "/air");
    return air_;
}

Model::Status Model::status() {
    Status status;
    served_->use([&](const Served::State& state) {
        status.version = state.version, status.fence = state.fence, status.delta = static_cast<int64_t>(state.number);
        status.age = std::chrono::duration<double>(std::chrono::system_clock::now() - state.written).count();
    });
    const std::lock_guard lock(mutex_);
    status.off = air_ && !air_->only ? static_cast<int64_t>(air_->keys.size()) : 0;
    status.failed = failed_, status.waits = waits_, status.swaps = swaps_, status.failures = failures_;
    return status;
}

}  // namespace serve
