// Loads an export's model.pt with the model.pt2 beside it, says what was decided, and prints the scores of its golden
// rows before and after every number of the scripted module is changed: compiled_driver FOLDER
#include <iostream>

#include "../../serve/scorer.h"

int main(int, char** arguments) {
    const torch::NoGradGuard guard;
    const std::filesystem::path folder = arguments[1];
    const auto signature = JsonReader(folder / "signature.json").value();
    const auto golden = JsonReader(folder / "golden.json").value();
    const auto stored = signature.members.find("stored");
    const auto mapped = stored == signature.members.end() ? Columns() : tables(stored->second, folder);
    const auto ids = columns(golden.at("ids"), true), lengths = columns(golden.at("lengths"), true);
    const auto dense = columns(golden.at("dense"), false);
    Scorer scorer(folder, "model.pt", mapped), plain(folder, "model.pt", mapped);
    std::cout << scorer.consider(folder / "model.pt2", signature, ids, lengths, dense, 1e-5, 2) << std::endl;
    Compiled compiled(folder / "model.pt2", signature.at("flat").at("model"), plain.module(), 2);
    for (int time = 0; time < 2; ++time) {
        for (const auto& each : plain.forward(ids, lengths, dense)) {
            const auto found = compiled.forward(ids, lengths, dense)->at(each.key());
            std::cout << each.key() << " " << (found - each.value()).abs().max().item<double>() << " "
                      << found.mean().item<double>() << std::endl;
        }
        for (const auto& each : plain.module().buffers())
            if (each.is_floating_point()) each.add_(0.01);
    }
    // A list longer than the file looks at is cut; a feature that is missing is not the compiled code's to refuse.
    auto long_ids = ids.copy(), long_lengths = lengths.copy(), fewer = ids.copy();
    for (const auto& name : signature.at("flat").at("model").at("once").entries) {
        long_ids.insert_or_assign(name.text, torch::arange(40));
        long_lengths.insert_or_assign(name.text, torch::tensor({40}));
    }
    for (const auto& each : plain.rank(long_ids, long_lengths, dense)) {
        const auto found = compiled.rank(long_ids, long_lengths, dense)->at(each.key());
        std::cout << "cut " << (found - each.value()).abs().max().item<double>() << std::endl;
    }
    fewer.erase("movie");
    std::cout << "missing " << compiled.forward(fewer, lengths, dense).has_value() << std::endl;
}
