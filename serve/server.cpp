#include "server.h"

#include <unistd.h>

#include <fstream>
#include <iostream>
#include <system_error>

namespace serve {
namespace {

constexpr size_t CONNECTIONS = 1024;
constexpr int ATTEMPTS = 20;  // to read a request anew, as a model was replaced meanwhile
constexpr size_t TOGETHER = 16;  // requests for items that are answered together
const char* const HEADER = "Inference-Header-Content-Length";

// A thread per connection: it waits for its client and for the queue, and computes nothing. Beyond so many, connections
// wait until others end.
class Connections : public httplib::TaskQueue {
  public:
    void enqueue(std::function<void()> connection) override {
        std::unique_lock lock(mutex_);
        fewer_.wait(lock, [&] { return open_ < CONNECTIONS; });
        const auto answer = [this, connection = std::move(connection)] {
            connection();
            const std::lock_guard lock(mutex_);
            --open_;
            fewer_.notify_all();
        };
        while (true) {
            try {
                std::thread(answer).detach();
                ++open_;
                return;
            } catch (const std::system_error&) {  // the machine has no thread left: another connection has to end
                fewer_.wait_for(lock, std::chrono::milliseconds(10));
            }
        }
    }
    void shutdown() override {
        std::unique_lock lock(mutex_);
        fewer_.wait(lock, [&] { return open_ == 0; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable fewer_;
    size_t open_ = 0;
};

// Refuses a request whose body stays unread, and closes the connection, on which that would be taken for the next one.
void close(httplib::Response& response, int status, const std::string& sentence) {
    const auto body = wire::error_json(sentence);
    response.status = status;
    response.set_header("Connection", "close");
    response.set_content_provider(body.size(), "application/json", [body](size_t, size_t, httplib::DataSink& sink) {
        sink.write(body.data(), body.size());
        return false;  // nothing more can be sent
    });
}

// Before a body is read: the library bounds what comes with its length alone, and neither chunks nor what it unpacks.
httplib::Server::HandlerResponse before(const httplib::Request& asked, httplib::Response& response) {
    using Next = httplib::Server::HandlerResponse;
    const bool posted = asked.method == "POST";
    if (!posted && asked.method != "GET" && asked.method != "HEAD") {
        close(response, 405, "this server knows GET and POST alone; see docs/guide/server.md for the addresses");
        return Next::Handled;
    }
    if (asked.has_header("Transfer-Encoding") || (posted && !asked.has_header("Content-Length"))) {
        close(response, 411, "a body must come with Content-Length, and not in chunks");
        return Next::Handled;
    }
    if (asked.has_header("Content-Encoding")) {
        close(response, 415, "a body must not be compressed; send it as it is, without Content-Encoding");
        return Next::Handled;
    }
    // What a body is says its address. By its type the library would take what `curl -d` sends for a form of 8 kB at
    // most; and ranges would repeat an answer as often as they name it.
    auto& mine = const_cast<httplib::Request&>(asked);
    mine.headers.erase("Content-Type"), mine.ranges.clear();
    return Next::Unhandled;
}

// Says when to ask again, where that helps.
void later(httplib::Response& response) {
    if (response.status == 429 || response.status == 503) response.set_header("Retry-After", "1");
}

double memory() {
    std::ifstream file("/proc/self/statm");
    double size = 0, resident = 0;
    file >> size >> resident;
    return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace

Server::Server(const Config& config)
    : config_(config), queue_(config.threads, config.queue, std::chrono::milliseconds(config.deadline_ms), TOGETHER,
                              [this](const auto& asked) { work(asked); }) {
    for (const auto& [name, about] : config.models) models_[name] = std::make_unique<Model>(name, about);
    for (const auto& [name, model] : models_) {
        RankConfig alone;
        alone.model = name;
        pipelines_[name] = std::make_shared<Pipeline>(models_, alone);
    }
    if (!config.rank.model.empty()) pipelines_["/rank"] = std::make_shared<Pipeline>(models_, config.rank);
    if (!config.retrieve.empty()) pipelines_["/retrieve"] = pipelines_[config.retrieve];
    if (!config.store.empty()) store_ = std::make_unique<store::Store>(store::open(config.store));
    if (!config.log.path.empty()) {
        log_ = std::make_unique<RequestLog>(config.log);
    }
    route();
    refresher_ = std::thread([this] { refresh(); });
}

bool Server::listen() {
    int heard_on = -1;
    http_.set_socket_options([&heard_on](int socket) {  // the library's own would share a port with another server
        const int yes = 1;
        setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        heard_on = socket;
    });
    bool heard = http_.bind_to_port(config_.host.c_str(), config_.port);
    if (heard) {
        ::listen(heard_on, CONNECTIONS);  // the library lets five wait; of more the first packet is lost for a second
        heard = http_.listen_after_bind();
    }
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    ends_.notify_all();
    refresher_.join();
    queue_.stop();
    return heard;
}

void Server::stop() {
    stopping_ = true;
    // The library forgets a stop that comes before it listens.
    while (!http_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    http_.stop();
}

void Server::route() {
    http_.new_task_queue = [] { return new Connections; };
    http_.set_payload_max_length(limits_.bytes);
    http_.set_tcp_nodelay(true);
    http_.set_keep_alive_max_count(1'000'000);
    http_.set_pre_routing_handler(before);
    http_.Post("/(rank|retrieve)", [this](const httplib::Request& asked, httplib::Response& response) {
        const auto name = asked.matches[1].str();
        const auto found = pipelines_.find("/" + name);
        if (found == pipelines_.end())
            return refuse(name, 404, "no one model of this server is the one for /" + name + "; name one in serve.json",
                          response);
        answer(*found->second, name, asked, response);
    });
    http_.Post("/v2/models/([^/]+)/infer", [this](const httplib::Request& asked, httplib::Response& response) {
        const auto name = asked.matches[1].str();
        const auto found = pipelines_.find(name);
        if (found == pipelines_.end()) return refuse("", 404, "there is no model of this name; GET /health lists them", response);
        answer(*found->second, name, asked, response);
    });
    http_.Post("/v2/models/([^/]+)/air", [this](const httplib::Request& asked, httplib::Response& response) {
        const auto name = asked.matches[1].str();
        const auto found = models_.find(name);
        if (found == models_.end()) return refuse("", 404, "there is no model of this name; GET /health lists them", response);
        try {
            const auto flat = [](int depth, nlohmann::json::parse_event_t, const nlohmann::json&) {
                if (depth > 2) throw wire::BadRequest(400, "the change is nested; on, off and only are lists of items");
                return true;
            };
            const auto change = nlohmann::json::parse(asked.body, flat, false);
            if (change.is_discarded()) throw wire::BadRequest(400, "the change is no JSON");
            found->second->change_air(change);
            response.set_content("{}", "application/json");
        } catch (const wire::BadRequest& error) {
            refuse(name, error.status, error.what(), response);
        }
    });
    http_.Get("/v2/models/([^/]+)(/ready)?", [this](const httplib::Request& asked, httplib::Response& response) {
        const auto found = models_.find(asked.matches[1].str());
        if (found == models_.end()) return refuse("", 404, "there is no model of this name; GET /health lists them", response);
        if (asked.matches[2].matched) return response.set_content("{}", "application/json");
        const auto status = found->second->status();
        response.set_content(wire::metadata_json(found->second->about()->signature,
                                                 {found->first, status.version, status.fence, status.delta}),
                             "application/json");
    });
    http_.Get("/(health|v2/health/ready)", [this](const httplib::Request&, httplib::Response& response) { health(response); });
    http_.Get("/v2/health/live",
              [](const httplib::Request&, httplib::Response& response) { response.set_content("{}", "application/json"); });
    http_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) { metrics(response); });
    http_.set_error_handler([](const httplib::Request&, httplib::Response& response) {
        if (!response.body.empty() || response.content_provider_) return;
        const auto* said = response.status == 413 ? "the body is too large; send fewer candidates per request"
                           : response.status == 404 ? "there is nothing here; see docs/guide/server.md for the addresses"
                                                    : "the request is no HTTP that this server reads";
        response.set_content(wire::error_json(said), "application/json");
    });
}

Server::Asked::Asked(Pipeline& pipeline, const httplib::Request& http)
    : pipeline(pipeline), http(http), people(http.path[1] != 'v' && !http.has_header(HEADER)) {}

void Server::answer(Pipeline& pipeline, const std::string& name, const httplib::Request& http,
                    httplib::Response& response) {
    const auto begun = std::chrono::steady_clock::now();
    Asked asked(pipeline, http);
    const auto outcome = queue_.run(asked, pipeline.joins() ? &pipeline : nullptr);
    using Outcome = Queue<Asked>::Outcome;
    if (stopping_) response.set_header("Connection", "close");
    if (outcome == Outcome::full)
        return refuse(name, 429, "the queue is full; ask again later, or another server", response);
    if (outcome != Outcome::done)
        return refuse(name, 503, outcome == Outcome::late ? "no thread was free before the deadline"
                                                          : "the server stops; ask another one", response);
    metrics_.add(name, asked.status, std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
    response.status = asked.status;
    later(response);
    if (asked.reply.binary) response.set_header(HEADER, std::to_string(asked.reply.header));
    response.set_content(std::move(asked.reply.body), asked.reply.binary ? "application/octet-stream" : "application/json");
}

// Answers requests for one pipeline, each by itself or all together.
void Server::work(const std::vector<Asked*>& asked) {
    const auto fails = [](Asked& one, int status, const std::string& sentence) {
        one.status = status;
        one.reply = {wire::error_json(sentence), 0, false};
    };
    // Does a part of the work on a request, and says whether that went well.
    const auto well = [&](Asked& one, auto&& part) {
        try {
            part();
            return true;
        } catch (const wire::BadRequest& error) {
            fails(one, error.status, error.what());
        } catch (const std::exception& error) {
            std::cerr << "500: " << ::said(error) << std::endl;
            fails(one, 500, "the model could not answer; the server's output says why");
        }
        return false;
    };
    auto& pipeline = asked[0]->pipeline;
    auto left = asked;
    for (int attempt = 0; attempt < ATTEMPTS && !left.empty(); ++attempt) {
        std::shared_ptr<const Joint> joint;
        std::erase_if(left, [&](Asked* one) {
            return !well(*one, [&] {
                if (!joint) joint = pipeline.joint(store_ ? store_->ids() : std::vector<std::string>());
                read(*one, *joint);
            });
        });
        if (left.empty()) return;
        std::vector<Pipeline::Asked> requests;
        for (const auto* one : left) requests.emplace_back(&one->request, one->rows);
        std::optional<std::vector<Outcome>> outcomes;
        try {
            outcomes = pipeline.answer(requests, *joint);
        } catch (const std::exception&) {
            if (left.size() == 1) {
                well(*left[0], [] { throw; });
                return;
            }
            for (auto* one : left) work({one});  // what is wrong with one is not the others' fault
            return;
        }
        if (!outcomes) continue;
        if (pipeline.joins()) metrics_.joined(pipeline.model().name, left.size());
        for (size_t at = 0; at < left.size(); ++at)
            well(*left[at], [&] { reply(*left[at], *joint, outcomes->at(at)); });
        return;
    }
    for (auto* one : left) fails(*one, 503, "models were replaced again and again meanwhile; ask again");
}

// Reads what a request has, and fills in the rest from the feature store.
void Server::read(Asked& asked, const Joint& joint) {
    const auto& body = asked.http.body;
    const auto header = wire::header_length(asked.http.get_header_value(HEADER), body.size());
    asked.request = asked.people ? wire::parse_json(body, joint.signature, limits_)
                                 : wire::parse_binary(body, header, joint.signature, limits_);
    std::string away;
    try {
        if (store_) asked.stored = store_->fill(asked.request, joint.signature, joint.reads, asked.request.time);
    } catch (const store::Down& error) {
        ++away_;
        away = error.what();
    }
    try {
        asked.rows = wire::check(asked.request, joint.signature, limits_);
    } catch (const wire::BadRequest& error) {
        if (!away.empty())
            throw wire::BadRequest(503, away + "; ask again, or send all features (" + error.what() + ")");
        const auto column = store_ ? store_->needs(asked.request, joint.signature, joint.reads) : "";
        if (column.empty()) throw;
        throw wire::BadRequest(error.status, std::string(error.what()) + "; the feature store fills in what depends " +
                                                 "on '" + column + "' only where a request has it, as an id");
    }
    for (const auto& [name, feature] : joint.signature.features)
        if (feature.looked_up) (void)asked.request.ids.erase(name), (void)asked.request.lengths.erase(name);
}

void Server::reply(Asked& asked, const Joint& joint, const Outcome& outcome) {
    if (log_ && !asked.request.rows && !asked.pipeline.joins() && log_->wanted()) log(asked, joint.signature, outcome);
    if (asked.people) asked.reply = {wire::answer_json(asked.request, outcome.answer), 0, false};
    else asked.reply = wire::answer_binary(asked.request, outcome.answer);
    asked.status = 200;
}

void Server::log(Asked& asked, const wire::Signature& signature, const Outcome& outcome) {
    Logged row;
    row.stored = std::move(asked.stored);
    row.name = asked.http.path == "/rank" ? "rank" : asked.pipeline.model().name;
    auto given = signature;  // alone: a log must not keep an old index
    std::erase_if(given.features, [](const auto& each) { return each.second.looked_up; });
    row.signature = std::make_shared<const wire::Signature>(std::move(given));
    row.request = asked.request;
    row.rows = asked.rows;
    row.model = outcome.answer.model;
    row.scores = outcome.answer.scores;
    row.order = outcome.order, row.prerank = outcome.prerank;
    log_->put(row);
}

void Server::refuse(const std::string& name, int status, const std::string& sentence, httplib::Response& response) {
    metrics_.add(name.empty() ? "none" : name, status, 0);
    response.status = status;
    later(response);
    response.set_content(wire::error_json(sentence), "application/json");
}

void Server::health(httplib::Response& response) {
    nlohmann::json models = nlohmann::json::object();
    bool well = true;
    for (const auto& [name, model] : models_) {
        const auto status = model->status();
        auto& about = models[name] = {{"kind", model->config.kind}, {"version", status.version}, {"fence", status.fence},
                                      {"delta", status.delta}, {"age_s", static_cast<int64_t>(status.age)}};
        if (!status.failed.empty()) about["failed"] = status.failed;
        if (!status.waits.empty()) about["waits"] = status.waits;
        well = well && status.failed.empty();
    }
    response.status = stopping_ ? 503 : 200;
    const auto* word = stopping_ ? "stops" : well ? "ok" : "serves on what it has";
    response.set_content(nlohmann::json({{"status", word}, {"models", models}, {"queue", queue_.length()}}).dump(),
                         "application/json");
}

void Server::metrics(httplib::Response& response) {
    std::ostringstream out;
    metrics_.write(out);
    Metrics::head(out, "queue_length", "gauge", "Requests that wait.");
    out << "livetrain_queue_length " << queue_.length() << "\n";
    std::map<std::string, Model::Status> all;
    for (const auto& [name, model] : models_) all[name] = model->status();
    const auto each = [&](const char* name, const char* kind, const char* what, auto&& value) {
        Metrics::head(out, name, kind, what);
        for (const auto& [model, status] : all)
            out << "livetrain_" << name << "{model=\"" << model << "\"} " << value(status) << "\n";
    };
    each("fence", "gauge", "Of the published version that is served.", [](const auto& of) { return of.fence; });
    each("delta", "gauge", "Number of the last delta taken in since the base.", [](const auto& of) { return of.delta; });
    each("model_age_seconds", "gauge", "Since what is served was written.", [](const auto& of) { return of.age; });
    each("swaps_total", "counter", "Bases and deltas taken in since the start.", [](const auto& of) { return of.swaps; });
    each("failed_loads_total", "counter", "Times that what is published could not be taken in.",
         [](const auto& of) { return of.failures; });
    each("off_the_air", "gauge", "Items that it was told are off the air.", [](const auto& of) { return of.off; });
    if (store_) {
        Metrics::head(out, "store_away_total", "counter", "Requests for which the feature store did not answer.");
        out << "livetrain_store_away_total " << away_ << "\n";
    }
    if (log_) {
        Metrics::head(out, "logged_requests_total", "counter", "Requests in whole files of the log.");
        out << "livetrain_logged_requests_total " << log_->written() << "\n";
        Metrics::head(out, "unlogged_requests_total", "counter", "Sampled requests that the log has lost: a slow or full disk.");
        out << "livetrain_unlogged_requests_total " << log_->dropped() << "\n";
    }
    out << "# HELP process_resident_memory_bytes Memory of this process.\n# TYPE process_resident_memory_bytes gauge\n"
        << "process_resident_memory_bytes " << memory() << "\n";
    response.set_content(out.str(), "text/plain; version=0.0.4");
}

void Server::refresh() {
    const std::chrono::milliseconds every(config_.refresh_ms);
    std::unique_lock lock(mutex_);
    while (!ends_.wait_for(lock, every, [&] { return stopping_.load(); })) {
        lock.unlock();
        for (const auto& [name, model] : models_) model->refresh(every);
        lock.lock();
    }
}

}  // namespace serve
