// Follows a published model: follow DIR
//
// On each line of its input it takes in what was published since, scores the golden rows, and prints how many deltas it
// has and how many scores differ from the recorded ones. A server does the first on a timer.

#include <iostream>

#include "../serve/deltas.h"

int main(int count, char** arguments) {
    if (count != 2 || !std::filesystem::exists(std::filesystem::path(arguments[1]) / "current.json")) {
        std::cerr << "give the folder of published versions, which holds current.json: follow DIR\n";
        return 2;
    }
    try {
        Served served(arguments[1]);
        for (std::string line; std::getline(std::cin, line);) {
            try {
                served.refresh();
            } catch (const std::exception& error) {
                std::cout << error.what() << "; it goes on as it was\n";
            }
            const Json rows = served.golden();
            torch::NoGradGuard guard;
            const auto scores = served.use([&](const Served::State& state) {
                const auto ids = columns(rows.at("ids"), true), lengths = columns(rows.at("lengths"), true);
                return state.at("model.pt").forward(ids, lengths, columns(rows.at("dense"), false));
            });
            int64_t different = 0;
            for (const auto& task : columns(rows.at("scores"), false))
                different += (scores.at(task.key()) != task.value()).sum().item<int64_t>();
            std::cout << served.state().number << " deltas, " << different << " scores differ" << std::endl;
        }
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 2;
    }
    return 0;
}
