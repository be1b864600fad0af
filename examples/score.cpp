// Scores the golden rows of an export with its file: score runs/NAME/export
//
// Prints for each task how many scores differ from the recorded ones, and fails if any does. A server fills the three
// dictionaries from its own requests instead; signature.json says what each feature wants.

#include <iostream>

#include "../serve/serving.h"

int main(int count, char** arguments) {
    const std::filesystem::path folder = count == 2 ? arguments[1] : "";
    for (const auto* file : {"model.pt", "signature.json", "golden.json"}) {
        if (std::filesystem::exists(folder / file)) continue;
        std::cerr << (folder / file).string()
                  << " is missing; give the folder that `livetrain export` wrote: score runs/NAME/export\n";
        return 2;
    }
    try {
        const Json rows = JsonReader(folder / "golden.json").value();
        const Json signature = JsonReader(folder / "signature.json").value();
        auto model = torch::jit::load((folder / "model.pt").string());
        torch::NoGradGuard guard;
        if (signature.members.count("stored"))
            model.run_method("attach", tables(signature.at("stored"), folder));
        const auto ids = columns(rows.at("ids"), true), lengths = columns(rows.at("lengths"), true);
        const auto scores = model.forward({ids, lengths, columns(rows.at("dense"), false)}).toGenericDict();
        int64_t different = 0;
        for (const auto& task : columns(rows.at("scores"), false)) {
            const auto differ = (scores.at(task.key()).toTensor() != task.value()).sum().item<int64_t>();
            std::cout << task.key() << ": " << task.value().numel() << " rows, " << differ << " scores differ\n";
            different += differ;
        }
        return different != 0;
    } catch (const c10::Error& error) {
        std::cerr << error.what_without_backtrace() << "\n";
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
    }
    return 2;
}
