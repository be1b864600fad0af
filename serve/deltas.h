// A published model in a C++ server: a base and the deltas since, each taken in whole or not at all.
//
//     Served served("/models/din");
//     served.refresh();                                      // now and then; from one thread at a time
//     served.use([&](const Served::State& state) {           // from any number of threads
//         return state.at("model.pt").rank(ids, lengths, dense);
//     });
//
// Before anybody is served by a base or a delta its hashes are checked, and it must score its golden rows as they say.
// While a delta is written to the model nobody is in `use`. Tables in files of their own are mapped copy-on-write: a
// page that a delta touches becomes memory of this process. Needs libtorch alone.

#pragma once

#include <chrono>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <tuple>

#include "golden.h"
#include "manifest.h"

class Served {
  public:
    struct State {
        std::map<std::string, std::shared_ptr<Scorer>> files;
        std::filesystem::path base;     // the folder of the export
        std::string folder, version;    // as the pointer names them
        size_t number = 0;              // of the last delta taken in; 0 of the base alone
        int64_t fence = 0;
        std::filesystem::path newest;   // the base's folder or the last delta's, with its golden rows
        std::chrono::system_clock::time_point written;  // when its manifest was
        std::string seal;               // the xxh64 of the last delta's manifest

        std::shared_ptr<const void> beside;  // what `beside` made of this base

        Scorer& at(const std::string& file) const { return *files.at(file); }
    };

    // where: the folder of the published versions; files: model.pt, or user.pt and item.pt of a model with two towers.
    // beside: makes of a base what is served with it, before it is served; an exception of it keeps the base away.
    // deltas: whether they are taken in.
    using Beside = std::function<std::shared_ptr<const void>(const State&)>;
    explicit Served(std::filesystem::path where, std::vector<std::string> files = {"model.pt"}, Beside beside = {},
                    bool deltas = true)
        : where_(std::move(where)), files_(std::move(files)), beside_(std::move(beside)), deltas_(deltas) {
        const auto pointer = JsonReader(where_ / "current.json").value();
        begin(pointer);
    }

    // Takes in what was published since, and returns whether anything was. What cannot be taken in is an exception:
    // the model stays as it was before, and a new base is asked for where this process may write. anew: what is served
    // beside the base is another now, so it is made again.
    bool refresh(bool anew = false) {
        const auto pointer = JsonReader(where_ / "current.json").value();
        if (std::stoll(pointer.at("fence").text) < seen_) return false;  // a stale copy, or a late writer
        const auto before = std::make_pair(state_.folder, state_.number);
        const auto deltas = listed(pointer);
        const auto number = state_.number;
        const bool goes_on = number <= deltas.size() && (number == 0 || deltas[number - 1].at("xxh64").text == state_.seal);
        if (anew || pointer.at("folder").text != state_.folder || !goes_on) begin(pointer);
        else follow(pointer);
        return anew || before != std::make_pair(state_.folder, state_.number);
    }

    // Does some work with one state of the model. Whoever waits to change it comes before those who come later.
    template <typename Work>
    auto use(Work&& work) {
        std::unique_lock door(door_);
        const std::shared_lock lock(gate_);
        door.unlock();
        return work(static_cast<const State&>(state_));
    }

    // For the thread that refreshes.
    const State& state() const { return state_; }
    Json golden() const { return JsonReader(state_.newest / "golden.json").value(); }

  private:
    using Change = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // where, rows (undefined: the whole), values
    static constexpr int CALLS = 20;

    std::vector<Json> listed(const Json& pointer) const {
        const auto found = pointer.members.find("deltas");
        return !deltas_ || found == pointer.members.end() ? std::vector<Json>() : found->second.entries;
    }

    // Does what may find something damaged; then a new base is asked for in the place of the version.
    template <typename Work>
    void asking(const std::string& folder, Work&& work) const {
        try {
            work();
        } catch (const std::exception& error) {
            const auto wanted = where_ / folder / "wanted.txt";
            if (std::filesystem::exists(where_ / folder) && !std::filesystem::exists(wanted))
                std::ofstream(wanted) << said(error) << "\n";
            throw;
        }
    }

    static std::chrono::system_clock::time_point written(const std::filesystem::path& folder) {
        return std::chrono::file_clock::to_sys(std::filesystem::last_write_time(folder / "manifest.json"));
    }

    template <typename Work>
    void alone(Work&& work) {
        const std::lock_guard door(door_);
        const std::unique_lock lock(gate_);
        work();
    }

    // Takes in a base with all its deltas before anybody is served by it: by itself it may be older than what is served.
    void begin(const Json& pointer) {
        State next;
        next.folder = pointer.at("folder").text, next.version = pointer.at("version").text;
        next.base = next.newest = where_ / next.folder;
        asking(next.folder, [&] {
            checked(next.base, "");
            next.written = written(next.base);
            const auto signature = JsonReader(next.base / "signature.json").value();
            const auto stored = signature.members.find("stored");
            const auto mapped = stored == signature.members.end() ? Columns() : tables(stored->second, next.base);
            for (const auto& file : files_)
                if (!std::filesystem::exists(next.base / file))
                    throw std::runtime_error(next.base.string() + " has no " + file + ", so it is no model of this kind");
            for (const auto& file : files_) next.files[file] = std::make_shared<Scorer>(next.base, file, mapped);
            const auto rows = JsonReader(next.base / "golden.json").value();
            const Golden golden(rows);
            golden.prove(next.files, CALLS);
            if (!signature.members.count("compiled")) return;
            for (const auto& [file, scorer] : next.files) {  // .pt2 beside .pt
                const auto said = scorer->consider((next.base / file).replace_extension(".pt2"), signature, golden.ids,
                                                   golden.lengths, golden.dense, std::stod(rows.at("tolerance").text),
                                                   std::max(std::thread::hardware_concurrency(), 1u));
                std::cerr << next.folder << "/" << said << std::endl;
            }
        });
        if (beside_) next.beside = beside_(next);
        catch_up(next, pointer, [](auto&& work) { work(); });
        seen_ = next.fence = std::stoll(pointer.at("fence").text);
        alone([&] { std::swap(state_, next); });
    }

    // Of the state after so many deltas, 1 or more: the pointer's where it names that state, else the one in the folder's name.
    int64_t fence_of(const Json& pointer, size_t number) const {
        const auto deltas = listed(pointer);
        if (number == deltas.size()) return std::stoll(pointer.at("fence").text);
        const auto folder = deltas[number - 1].at("folder").text;
        return std::stoll(folder.substr(folder.rfind('.') + 1));
    }

    void follow(const Json& pointer) {
        seen_ = std::stoll(pointer.at("fence").text);
        const auto served = [&](auto&& work) { alone(work); };
        catch_up(state_, pointer, served);
        served([&] { state_.fence = seen_; });  // also of a pointer that names the same anew
    }

    // Takes in the deltas that a pointer lists beyond those of a state. change: does a work that changes it.
    template <typename Do>
    void catch_up(State& state, const Json& pointer, Do&& change) {
        const auto deltas = listed(pointer);
        while (state.number < deltas.size()) {
            const auto& next = deltas[state.number];
            const auto fence = fence_of(pointer, state.number + 1);
            asking(state.folder, [&] { take(state, where_ / next.at("folder").text, next.at("xxh64").text, fence, change); });
        }
    }

    template <typename Do>
    void take(State& state, const std::filesystem::path& folder, const std::string& seal, int64_t fence, Do&& change) {
        const auto about = checked(folder, seal);
        const auto before = about.at("before").text;
        if (about.at("base").text != state.folder || about.at("number").text != std::to_string(state.number + 1) ||
            before != (state.seal.empty() ? "null" : state.seal))
            throw std::runtime_error(folder.string() + " does not follow on what is served; publish a new base");
        std::vector<Change> changed, back;
        for (const auto& file : files_) changes(state, folder, file, changed);
        const Golden golden(JsonReader(folder / "golden.json").value());
        const auto when = written(folder);  // before anything changes, as it may throw
        const torch::NoGradGuard guard;
        for (const auto& [target, rows, values] : changed)
            back.emplace_back(target, rows, rows.defined() ? target.index_select(0, rows) : target.clone());
        change([&] {
            try {
                write(changed);
                golden.prove(state.files, 0);
            } catch (...) {
                write(back);
                throw;
            }
            ++state.number, state.fence = fence, state.newest = folder, state.written = when, state.seal = seal;
        });
    }

    static void write(const std::vector<Change>& changed) {
        for (const auto& [target, rows, values] : changed) {
            if (rows.defined()) target.index_copy_(0, rows, values);
            else target.copy_(values);
        }
    }

    // Adds what is to be written where in one file, once all of it is known to fit.
    static void changes(const State& state, const std::filesystem::path& folder, const std::string& file,
                        std::vector<Change>& found) {
        const auto index = JsonReader(folder / "delta.json").value();
        if (index.at("format").text != "1")
            throw std::runtime_error(folder.string() + " is of a newer format; take a newer program");
        const auto size = static_cast<int64_t>(std::filesystem::file_size(folder / "delta.bin"));
        const auto numbers = torch::from_file((folder / "delta.bin").string(), false, size, torch::kUInt8);
        auto& module = state.at(file).module();
        std::map<std::string, at::Tensor> own;
        for (const auto& each : module.named_parameters()) own[each.name] = each.value;
        for (const auto& each : module.named_buffers()) own[each.name] = each.value;
        std::map<void*, bool> seen;  // features share tables, and mapped ones are shared by files
        for (const auto& change : found) seen[std::get<0>(change).data_ptr()] = true;
        const auto add = [&](const std::string& name, const at::Tensor& rows, const at::Tensor& values) {
            const auto place = own.find(name);
            const bool fits = place != own.end() && place->second.dtype() == values.dtype() &&
                              place->second.sizes().slice(rows.defined()) == values.sizes().slice(rows.defined());
            const bool inside = fits && (!rows.defined() || rows.numel() == values.size(0)) &&
                                (!rows.defined() || rows.numel() == 0 ||
                                 (rows[0].item<int64_t>() >= 0 && rows[-1].item<int64_t>() < place->second.size(0)));
            if (!inside) throw std::runtime_error(folder.string() + ": '" + name + "' is another model's");
            if (place->second.numel() == 0 || seen[place->second.data_ptr()]) return;
            seen[place->second.data_ptr()] = true;
            found.emplace_back(place->second, rows, values);
        };
        const auto& mine = index.at("files").at(file);
        for (const auto& [name, about] : mine.at("rows").members)
            add(name, tensor(index.at("rows").at(about.at("table").text), numbers),
                tensor(index.at("values").at(about.at("values").text), numbers));
        for (const auto& [name, about] : mine.at("whole").members) add(name, {}, tensor(about, numbers));
    }

    static at::Tensor tensor(const Json& about, const at::Tensor& numbers) {
        static const std::map<std::string, at::ScalarType> types = {
            {"float32", torch::kFloat32}, {"float64", torch::kFloat64}, {"float16", torch::kFloat16},
            {"bfloat16", torch::kBFloat16}, {"uint8", torch::kUInt8},   {"bool", torch::kBool},
            {"int8", torch::kInt8},         {"int16", torch::kInt16},   {"int32", torch::kInt32},
            {"int64", torch::kInt64}};
        const auto type = types.at(about.at("dtype").text);
        std::vector<int64_t> shape;
        int64_t count = 1;
        for (const auto& each : about.at("shape").entries) shape.push_back(std::stoll(each.text)), count *= shape.back();
        if (count == 0) return torch::empty(shape, type);
        const auto bytes = count * static_cast<int64_t>(c10::elementSize(type));
        return numbers.narrow(0, std::stoll(about.at("at").text), bytes).view(type).view(shape);
    }

    const std::filesystem::path where_;
    const std::vector<std::string> files_;
    const Beside beside_;
    const bool deltas_;
    int64_t seen_ = 0;  // the largest fence of all pointers
    State state_;  // read by `use`, and written by the thread that refreshes, alone
    std::mutex door_;
    std::shared_mutex gate_;
};
