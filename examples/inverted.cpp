// Finds the best items of one request in an inverted table of `livetrain index`:
//
//     inverted FOLDER COUNT KEY=WEIGHT ...
//
// FOLDER: a version's folder, with keys.txt and table.*.bin. KEY: what the request's side answers, an int64 id. Prints
// KEY SCORE per item, the best first: score = sum over the request's keys of weight x table[key, item]. Some tables say
// of a key what it leaves of the weights of those behind it (table.rest.bin).

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

template <typename Number>
std::vector<Number> numbers(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be read; name the folder of an inverted table's version");
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    std::vector<Number> read(bytes.size() / sizeof(Number));
    std::copy_n(bytes.begin(), read.size() * sizeof(Number), reinterpret_cast<char*>(read.data()));
    return read;
}

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: inverted FOLDER COUNT KEY=WEIGHT ...\n";
        return 2;
    }
    try {
        const std::string folder = argv[1];
        const auto keys = numbers<int64_t>(folder + "/table.keys.bin");
        const auto offsets = numbers<int64_t>(folder + "/table.offsets.bin");
        const auto places = numbers<int32_t>(folder + "/table.places.bin");
        const auto scores = numbers<float>(folder + "/table.scores.bin"), rest = numbers<float>(folder + "/table.rest.bin");
        std::vector<std::string> items;
        std::ifstream names(folder + "/keys.txt");
        for (std::string line; std::getline(names, line);) items.push_back(line);

        std::unordered_map<int32_t, float> worth;
        float left = 1;
        for (int number = 3; number < argc; ++number) {
            const std::string word = argv[number];
            const auto parted = word.find('=');
            const int64_t key = std::stoll(word.substr(0, parted));
            const float weight = left * (parted == std::string::npos ? 1 : std::stof(word.substr(parted + 1)));
            const auto found = std::lower_bound(keys.begin(), keys.end(), key);
            if (found == keys.end() || *found != key) continue;
            const auto at = found - keys.begin();
            for (auto entry = offsets[at]; entry < offsets[at + 1]; ++entry)
                worth[places[entry]] += weight * scores[entry];
            if (!rest.empty()) left *= rest[at];
        }
        std::vector<std::pair<int32_t, float>> best(worth.begin(), worth.end());
        std::sort(best.begin(), best.end(), [](const auto& one, const auto& other) {
            return one.second != other.second ? one.second > other.second : one.first < other.first;
        });
        best.resize(std::min<size_t>(best.size(), std::stoull(argv[2])));
        for (const auto& [place, score] : best) std::cout << items.at(place) << " " << score << "\n";
        return 0;
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 2;
    }
}
