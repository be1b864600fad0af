// Fills requests from a store: store_driver STORE SIGNATURE < REQUESTS > FEATURES
//
// A line of REQUESTS is {"ms":, "ids": {feature: [...]}}, each id one row. A line of FEATURES has ids, lengths and dense.

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "../../serve/store.h"

using nlohmann::json;

namespace {

json plain(const Columns& columns) {
    json made = json::object();
    for (const auto& column : columns) {
        const auto tensor = column.value().contiguous();
        json values = json::array();
        for (int64_t i = 0; i < tensor.numel(); ++i) {
            if (tensor.scalar_type() == at::kLong) values.push_back(tensor.data_ptr<int64_t>()[i]);
            else if (const float value = tensor.data_ptr<float>()[i]; std::isnan(value)) values.push_back(nullptr);
            else values.push_back(value);
        }
        made[column.key()] = values;
    }
    return made;
}

}  // namespace

int main(int, char** arguments) {
    std::ifstream file(arguments[2]);
    const std::string signature(std::istreambuf_iterator<char>(file), {});
    const auto reads = store::Reads::parsed(signature);
    try {
        store::Store held(store::open(arguments[1]));
        for (std::string line; std::getline(std::cin, line);) {
            const auto asked = json::parse(line);
            wire::Request request;
            for (const auto& [name, ids] : asked.at("ids").items()) {
                const auto values = ids.get<std::vector<int64_t>>();
                request.ids.insert(name, at::tensor(values, at::kLong));
                request.lengths.insert(name, at::ones({int64_t(values.size())}, at::kLong));
            }
            try {
                const auto filled = held.fill(request, reads, asked.at("ms").get<int64_t>());
                std::cout << json{{"filled", filled},
                                  {"ids", plain(request.ids)},
                                  {"lengths", plain(request.lengths)},
                                  {"dense", plain(request.dense)}}
                          << std::endl;
            } catch (const store::Down& error) {
                std::cout << json{{"down", error.what()}} << std::endl;
            }
        }
    } catch (const std::runtime_error& error) {
        std::cout << json{{"error", error.what()}} << std::endl;
    }
}
