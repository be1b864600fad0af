// Finds the items nearest to some vectors in an index of `livetrain index`: nearest FOLDER QUERIES COUNT [OFF_AIR]
//
// FOLDER: a version's folder, with index.faiss and keys.txt. QUERIES: float32 numbers, a vector after the other, such
// as user.pt answers. OFF_AIR: a file with the keys of items that are not to be found, one per line; a server would
// change the bits of `air` as items come and go, and build nothing anew. Prints a line per vector: KEY SCORE ...

#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVF.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/index_io.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

std::vector<std::string> lines(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error(path + " cannot be read; name the folder of an index's version");
    std::vector<std::string> read;
    for (std::string line; std::getline(file, line);) read.push_back(line);
    return read;
}

std::vector<float> numbers(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    std::vector<float> read(bytes.size() / sizeof(float));
    std::copy_n(bytes.begin(), read.size() * sizeof(float), reinterpret_cast<char*>(read.data()));
    return read;
}

// As much of a graph or of its lists is looked at as finds enough among the items that are left. Where a graph would
// show as many as there are, they are compared each, in its store.
const faiss::Index* search(const faiss::Index* index, const faiss::IDSelector& air, int64_t left, int64_t count,
                           std::unique_ptr<faiss::SearchParameters>& how) {
    left = std::max<int64_t>(left, 1);
    const auto scaled = [&](int64_t effort) { return (effort * index->ntotal + left - 1) / left; };
    if (const auto* graph = dynamic_cast<const faiss::IndexHNSW*>(index)) {
        const int64_t effort = scaled(std::max<int64_t>(graph->hnsw.efSearch, count));
        if (effort < left) {
            auto parameters = std::make_unique<faiss::SearchParametersHNSW>();
            parameters->efSearch = static_cast<int>(effort);
            how = std::move(parameters);
        } else {
            how = std::make_unique<faiss::SearchParameters>();
            index = graph->storage;
        }
    } else if (const auto* codes = dynamic_cast<const faiss::IndexIVF*>(index)) {
        auto parameters = std::make_unique<faiss::SearchParametersIVF>();
        parameters->nprobe = std::min<size_t>(scaled(codes->nprobe), codes->nlist);
        how = std::move(parameters);
    } else {
        how = std::make_unique<faiss::SearchParameters>();
    }
    how->sel = const_cast<faiss::IDSelector*>(&air);
    return index;
}

int main(int argc, char** argv) {
    if (argc < 4) {
        std::cerr << "usage: nearest FOLDER QUERIES COUNT [OFF_AIR]\n";
        return 2;
    }
    try {
        const std::string folder = argv[1];
        const auto keys = lines(folder + "/keys.txt");
        const std::unique_ptr<faiss::Index> index(faiss::read_index((folder + "/index.faiss").c_str()));
        const auto queries = numbers(argv[2]);
        const int64_t rows = queries.size() / index->d, count = std::min<int64_t>(std::stoll(argv[3]), index->ntotal);

        std::unordered_map<std::string, size_t> places;
        for (size_t place = 0; place < keys.size(); ++place) places[keys[place]] = place;
        std::vector<uint8_t> air((keys.size() + 7) / 8, 0xff);  // bit `place`: the item is on the air
        int64_t left = index->ntotal;
        for (const auto& key : argc > 4 ? lines(argv[4]) : std::vector<std::string>()) {
            const auto found = places.find(key);
            if (found == places.end()) continue;
            uint8_t& bits = air[found->second >> 3];
            const uint8_t bit = 1 << (found->second & 7);
            left -= (bits & bit) != 0;
            bits &= ~bit;
        }
        const faiss::IDSelectorBitmap selector(air.size(), air.data());
        std::unique_ptr<faiss::SearchParameters> how;
        const auto* searched = search(index.get(), selector, left, count, how);
        std::vector<float> scores(rows * count);
        std::vector<int64_t> found(rows * count);
        searched->search(rows, queries.data(), count, scores.data(), found.data(), how.get());
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t at = row * count; at < (row + 1) * count && found[at] >= 0; ++at)
                std::cout << (at == row * count ? "" : " ") << keys[found[at]] << " " << scores[at];
            std::cout << "\n";
        }
        return 0;
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 2;
    }
}
