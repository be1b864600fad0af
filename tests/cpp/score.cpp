// Scores the rows of a golden.json with the exported file: score MODEL ROWS
// ROWS is the same as text, a line each: ids|lengths|dense|scores NAME NUMBER NUMBER ...   (nan: a missing value)
// Prints how many scores differ, and fails if any does.

#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <sstream>
#include <vector>

using Columns = c10::Dict<std::string, at::Tensor>;

int main(int, char** arguments) {
    auto model = torch::jit::load(arguments[1]);
    Columns ids, lengths, dense, recorded;
    std::ifstream rows(arguments[2]);
    for (std::string line; std::getline(rows, line);) {
        std::istringstream words(line);
        std::string part, name, word;
        words >> part >> name;
        std::vector<int64_t> whole;
        std::vector<double> real;
        const bool integers = part == "ids" || part == "lengths";
        while (words >> word) {
            if (integers) whole.push_back(std::stoll(word));
            else real.push_back(std::stod(word));
        }
        auto& columns = part == "ids" ? ids : part == "lengths" ? lengths : part == "dense" ? dense : recorded;
        columns.insert(name, integers ? torch::tensor(whole, torch::kInt64) : torch::tensor(real, torch::kFloat32));
    }
    torch::NoGradGuard guard;
    const auto scores = model.forward({ids, lengths, dense}).toGenericDict();
    int64_t different = 0;
    for (const auto& task : recorded)
        different += (scores.at(task.key()).toTensor() != task.value()).sum().item<int64_t>();
    std::cout << recorded.size() << " task(s), " << different << " scores differ\n";
    return recorded.empty() || different != 0;
}
