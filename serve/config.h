// serve.json: what the server serves, see docs/guide/server.md.

#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "request_log.h"

namespace serve {

// A sentence that names the key or file, the fault and the mend.
struct BadConfig : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct ModelConfig {
    std::filesystem::path published;
    std::string kind = "rank";     // or prerank, or retrieve
    std::filesystem::path index;   // of retrieve: the folder of published indexes
    int64_t top = 100;             // of retrieve: items per answer, where the request does not say
    bool told = false;             // of retrieve: nothing is found until it is told what is on the air
    int64_t keep = 0;              // of prerank: candidates that the ranker gets; 0 where `cut` says
    std::filesystem::path cut;     // of prerank: a scripted Cut
    std::string regular, category; // of it: features of candidates
};

struct RankConfig {
    std::string model, prerank;      // names of models; "" of no prerank
    std::string by;                  // the score that orders; "" of the fused one, or else of the only task
    std::filesystem::path rerank;    // a scripted DPP; "" of none
    std::string vectors;             // the model whose item.pt gives it vectors
};

struct Config {
    std::string host = "127.0.0.1";
    int port = 8080;
    int64_t threads = 1, queue = 64, deadline_ms = 200, refresh_ms = 1000;
    std::map<std::string, ModelConfig> models;
    RankConfig rank;         // of POST /rank; `model` is "" where there is none
    std::string retrieve;    // the model of POST /retrieve; "" where there is none
    nlohmann::json store;       // null of none
    LogConfig log;              // its path is "" where nothing is logged
};

// Raises BadConfig.
Config read_config(const std::filesystem::path& file);

}  // namespace serve
