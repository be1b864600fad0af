// Requests and answers of the server: the Open Inference Protocol v2 with its binary tensors, and JSON for people.
//
//     POST /v2/models/NAME/infer      Inference-Header-Content-Length: N
//     {"id": "a7", "inputs": [{"name": "ids.user", "datatype": "INT64", "shape": [1],
//                              "parameters": {"binary_data_size": 8}}, ...]}  then the tensors, little-endian
//
// Tensors are named ids.FEATURE and lengths.FEATURE (INT64, one dimension) and dense.FEATURE (FP32, (b) or (b, w); of a
// feature of ids what lies beside them, a weight or vector of each). Features of the user have one row, those of
// candidates one per candidate; with the parameter "rows": true every feature has as many rows. Scores come back as
// FP32, named by task.
//
//     POST /rank      {"user": {"user": 17, "history": [4, 9]}, "candidates": {"video": [31, 8], "length": [12.5, null]}}
//
// What is wrong with a request is a BadRequest: a sentence that names the feature, the fault and the mend. Needs
// libtorch and nlohmann-json.

#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "columns.h"

namespace wire {

struct BadRequest : std::runtime_error {
    BadRequest(int status, const std::string& sentence) : std::runtime_error(sentence), status(status) {}
    int status;  // of HTTP: 400, or 413 of what is too large
};

struct Limits {
    size_t bytes = 16 << 20;       // of a body
    size_t json = 4 << 20;         // of its JSON
    int depth = 12;                // of JSON
    int64_t rows = 10'000;         // candidates of a request, or its rows
    int64_t numbers = 2'000'000;   // ids and numbers of a request in all
    size_t text = 200;             // bytes of a request's id, and of a channel's name
};

// What a caller has to give of one feature, see signature.json.
struct Feature {
    bool ids = true;                // or numbers
    bool lists = false;             // ids: any number per row, newest last; otherwise one or none
    int64_t width = 1;              // numbers: of a row
    std::string beside;             // what lies beside each id: "weights", "vectors" or "times"; "" of nothing
    int64_t beside_width = 0;       // how many numbers that is; 0 where the signature is of an older export
    std::optional<bool> strings;    // whether its ids are hashes of strings, where that is known
    bool looked_up = false;         // no model reads it: the feature store goes by it, where a request has it

    bool operator==(const Feature&) const = default;
};

struct Signature {
    std::map<std::string, Feature, std::less<>> features;  // without those that the file makes of others
    std::vector<std::string> scores;                       // tasks, and the fused score
    std::map<std::string, std::vector<std::string>> towers;  // "user" and "item" of a model that has them: features

    bool operator==(const Signature&) const = default;

    // Raises std::runtime_error: this is no signature.
    static Signature parsed(std::string_view text);
    static Signature read(const std::filesystem::path& file);
    // Of models that answer one request together: features of both. Raises std::runtime_error where they disagree.
    Signature with(const Signature& other) const;
    Signature only(const std::vector<std::string>& names) const;
};

struct Output {
    std::string name;
    bool binary;
};

struct Request {
    std::string id;       // the caller's, or one drawn
    int64_t time = 0;     // when it was read, in ms since 1970 (UTC)
    bool rows = false;    // `forward`: every feature has as many rows; otherwise `rank`
    Columns ids, lengths, dense;
    std::vector<std::string> channel;  // what recall says of each candidate; logged only
    std::vector<int64_t> exclude;      // /retrieve: items that the answer leaves out
    int64_t top = 0;                   // /retrieve: items asked for; 0 where the caller leaves that to the server
    std::vector<Output> outputs;       // that the caller wants, all where it names none
    bool binary = false;               // of outputs that are not named
};

// Which model answered.
struct Stamp {
    std::string name, version;
    int64_t fence = 0, delta = 0;
};

using Named = std::vector<std::pair<std::string, at::Tensor>>;  // float32 or int64

struct Answer {
    Stamp model;
    Named scores;  // by task
    Named more;    // as "order", (k) places of candidates, best first; "items" of /retrieve
    std::vector<std::string> names;  // of items that are strings, in the place of their hashes for people
};

// What is sent: `header` bytes of JSON, then tensors.
struct Reply {
    std::string body;
    size_t header = 0;
    bool binary = false;  // Content-Type: application/octet-stream, and Inference-Header-Content-Length
};

// The length of a body's JSON by the field Inference-Header-Content-Length, "" where there is none.
size_t header_length(std::string_view field, size_t body);

// Both read what is there and refuse what no feature of the signature can be; whether all is there says `check`, after
// the feature store has filled in what is left out. Tensors of parse_binary lie in `body`, where they are aligned:
// `body` must live as long as the request.
Request parse_binary(std::string_view body, size_t header, const Signature& signature, const Limits& limits = {});
Request parse_json(std::string_view body, const Signature& signature, const Limits& limits = {});

// Returns how many rows, or candidates, a request has, and raises BadRequest where a feature of the signature is
// missing or does not fit the others. No candidates, 0, are no fault: the answer is empty lists.
int64_t check(const Request& request, const Signature& signature, const Limits& limits = {});

// Raises BadRequest where the caller wants an output that is not there.
Reply answer_binary(const Request& request, const Answer& answer);
std::string answer_json(const Request& request, const Answer& answer);
std::string error_json(std::string_view sentence);  // {"error": ...}, in both forms
// GET /v2/models/NAME
std::string metadata_json(const Signature& signature, const Stamp& model);

}  // namespace wire
