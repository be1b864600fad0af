// The server: addresses, the queue behind them, and the thread that keeps models up to date.

#pragma once

#include <httplib.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "metrics.h"
#include "pipeline.h"
#include "queue.h"

namespace serve {

class Server {
  public:
    // Loads all models. Raises BadConfig or std::runtime_error, a sentence.
    explicit Server(const Config& config);

    // Answers until `stop`, from another thread; returns false where the address cannot be had.
    bool listen();
    // Takes no more connections; what has arrived is answered. Waits for `listen` to begin.
    void stop();

  private:
    struct Asked {  // a request, from its arrival to its answer
        Asked(Pipeline& pipeline, const httplib::Request& http);

        Pipeline& pipeline;
        const httplib::Request& http;
        const bool people;  // in JSON for people
        wire::Request request;
        int64_t rows = 0;
        std::vector<std::string> stored;  // features that came from the store
        int status = 500;
        wire::Reply reply;
    };

    void route();
    void answer(Pipeline& pipeline, const std::string& name, const httplib::Request& http, httplib::Response& response);
    void work(const std::vector<Asked*>& asked);
    void read(Asked& asked, const Joint& joint);
    void reply(Asked& asked, const Joint& joint, const Outcome& outcome);
    void log(Asked& asked, const wire::Signature& signature, const Outcome& outcome);
    void refuse(const std::string& name, int status, const std::string& sentence, httplib::Response& response);
    void health(httplib::Response& response);
    void metrics(httplib::Response& response);
    void refresh();

    const Config config_;
    const wire::Limits limits_;
    Models models_;
    std::map<std::string, std::shared_ptr<Pipeline>> pipelines_;  // by model; and "rank" and "retrieve" under a slash
    Metrics metrics_;
    std::unique_ptr<store::Store> store_;  // null of none
    std::atomic<int64_t> away_{0};         // requests for which it did not answer
    std::unique_ptr<RequestLog> log_;  // null of none
    Queue<Asked> queue_;
    httplib::Server http_;
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable ends_;
    std::thread refresher_;
};

}  // namespace serve
