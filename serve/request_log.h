// A sample of the requests with what was answered, as Parquet: data of requests, as training, `livetrain skew` and
// `livetrain explain` read them.
//
//     LOG/NAME/date=2026-11-30/142530-host-0.parquet       a row per request, see docs/guide/clients.md
//
// Nothing here ever holds a request up: rows are handed to a thread that writes, and where that has too much to do, or the
// disk is full, they are dropped and counted. A file appears once it is whole; a kill loses the one that was open.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "wire.h"

namespace serve {

struct LogConfig {
    std::filesystem::path path;
    double share = 0.01;            // of the requests that are logged
    int64_t rows = 100'000;         // a file is closed after so many,
    int64_t seconds = 300;          // or once its first row is so old
    size_t waiting = 1000;          // rows that may wait for the thread that writes,
    size_t bytes = 64 << 20;        // and their bytes; of what is not yet written to the file as much again
    std::string host;               // in the files' names; this machine's by default
};

// A request with its answer.
struct Logged {
    std::string name;               // what answered: a model, or "rank" of a ranking in stages
    std::shared_ptr<const wire::Signature> signature;
    wire::Request request;          // as the model was given it, after the feature store's look-up
    int64_t rows = 0;               // candidates, see wire::check
    std::vector<std::string> stored;  // features that the store filled in
    wire::Stamp model;
    wire::Named scores;             // by task, (rows)
    at::Tensor order, prerank;      // (k) int64 and (rows) float32, or undefined
};

class RequestLog {
  public:
    // Raises std::runtime_error where the folder cannot be made.
    explicit RequestLog(LogConfig config);
    ~RequestLog();  // writes what waits, and closes the files

    // Draws whether a request is to be logged: ask before the rest is made.
    bool wanted() const;
    // From any thread, without waiting for a disk. Tensors are copied.
    void put(const Logged& row);

    uint64_t written() const { return written_; }  // rows in whole files
    uint64_t dropped() const { return dropped_; }

  private:
    class File;

    void work();

    const LogConfig config_;
    std::atomic<uint64_t> written_ = 0, dropped_ = 0;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<Logged> waiting_;
    size_t bytes_ = 0;
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace serve
