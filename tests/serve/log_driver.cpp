// Logs requests as the server does. For tests/serve/test_request_log.py.
//
//     log_driver SIGNATURE FOLDER ROWS SECONDS WAITING SHARE [FILE BYTES]      lines as of wire_driver, "sleep MS", "kill"
//
// With FILE BYTES no file of this process may be larger: the disk is full.

#include <ATen/ops/empty.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <iostream>
#include <iterator>

#include "../../serve/request_log.h"

int main(int count, char** arguments) {
    const auto signature = std::make_shared<const wire::Signature>(wire::Signature::read(arguments[1]));
    serve::LogConfig config;
    config.path = arguments[2], config.rows = std::stoll(arguments[3]), config.seconds = std::stoll(arguments[4]);
    config.waiting = std::stoull(arguments[5]), config.share = std::stod(arguments[6]), config.host = "here";
    if (count > 7) {
        std::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{std::stoull(arguments[7]), std::stoull(arguments[7])};
        setrlimit(RLIMIT_FSIZE, &limit);
    }
    uint64_t wanted = 0, asked = 0;
    auto log = std::make_unique<serve::RequestLog>(config);
    for (std::string kind, field, path; std::cin >> kind >> path;) {
        if (kind == "sleep") {
            std::this_thread::sleep_for(std::chrono::milliseconds(std::stoi(path)));
            continue;
        }
        if (kind == "kill") std::raise(SIGKILL);
        field = "";
        if (kind == "binary") field = path, std::cin >> path;
        std::ifstream file(path, std::ios::binary);
        const std::string body(std::istreambuf_iterator<char>(file), {});
        ++asked;
        if (!log->wanted()) continue;
        ++wanted;
        serve::Logged row;
        row.name = "rank", row.signature = signature;
        row.request = kind == "json" ? wire::parse_json(body, *signature)
                                     : wire::parse_binary(body, wire::header_length(field, body.size()), *signature);
        row.rows = wire::check(row.request, *signature);
        row.stored = {"history"};
        row.model = {"din", "20261130", 7, 2};
        auto scores = at::empty({row.rows}, at::kFloat);
        row.order = at::empty({row.rows}, at::kLong);
        for (int64_t at = 0; at < row.rows; ++at)
            scores.data_ptr<float>()[at] = .5f + .25f * static_cast<float>(at), row.order.data_ptr<int64_t>()[at] = row.rows - 1 - at;
        row.scores.emplace_back("click", scores);
        log->put(row);
    }
    auto* last = log.get();
    std::cout << "{\"asked\": " << asked << ", \"wanted\": " << wanted << ", \"dropped_before_the_end\": " << last->dropped();
    log.reset();
    std::cout << "}" << std::endl;
}
