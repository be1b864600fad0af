// Where a feature store lies: LMDB, and Redis.

#ifdef LIVETRAIN_LMDB
#include <lmdb.h>
#endif
#ifdef LIVETRAIN_REDIS
#include <hiredis/hiredis.h>
#endif

#include <filesystem>
#include <utility>

#include "store.h"

namespace store {

namespace {

#ifdef LIVETRAIN_LMDB
class Lmdb : public Place {
  public:
    explicit Lmdb(const std::string& folder) : folder_(folder) {
        if (!std::filesystem::exists(std::filesystem::path(folder) / "data.mdb"))
            throw std::runtime_error("store: there is none in " + folder + "; `livetrain store fill` makes one");
        check(mdb_env_create(&environment_));
        check(mdb_env_set_mapsize(environment_, size_t(1) << 40));
        check(mdb_env_set_maxreaders(environment_, 4096));
        // Reads of many threads: a transaction is the call's and not the thread's.
        check(mdb_env_open(environment_, folder.c_str(), MDB_RDONLY | MDB_NOTLS | MDB_NORDAHEAD, 0644));
        MDB_txn* reading = nullptr;
        check(mdb_txn_begin(environment_, nullptr, MDB_RDONLY, &reading));
        check(mdb_dbi_open(reading, nullptr, 0, &values_));
        check(mdb_txn_commit(reading));
    }
    ~Lmdb() override { mdb_env_close(environment_); }

    std::vector<std::optional<std::string>> get(const std::vector<std::string>& keys) override {
        MDB_txn* reading = nullptr;
        check(mdb_txn_begin(environment_, nullptr, MDB_RDONLY, &reading));
        const std::unique_ptr<MDB_txn, void (*)(MDB_txn*)> held(reading, mdb_txn_abort);
        std::vector<std::optional<std::string>> found(keys.size());
        for (size_t i = 0; i < keys.size(); ++i) {
            MDB_val key{keys[i].size(), const_cast<char*>(keys[i].data())}, value;
            const int code = mdb_get(reading, values_, &key, &value);
            if (code == MDB_NOTFOUND) continue;
            check(code);
            found[i].emplace(static_cast<const char*>(value.mv_data), value.mv_size);
        }
        return found;
    }

  private:
    void check(int code) const {
        if (code) throw Down("store: " + folder_ + " cannot be read (" + mdb_strerror(code) + ")");
    }
    std::string folder_;
    MDB_env* environment_ = nullptr;
    MDB_dbi values_ = 0;
};
#endif

#ifdef LIVETRAIN_REDIS
class Redis : public Place {
  public:
    explicit Redis(const std::string& url) {
        auto rest = url.substr(url.find("://") + 3);
        const auto slash = rest.find('/');
        if (slash != std::string::npos) {
            database_ = rest.substr(slash + 1);
            rest.resize(slash);
        }
        const auto at = rest.rfind('@');  // [USER]:PASSWORD@
        if (at != std::string::npos) {
            password_ = rest.substr(rest.find(':') + 1, at - rest.find(':') - 1);
            rest = rest.substr(at + 1);
        }
        const auto colon = rest.find(':');
        host_ = rest.substr(0, colon);
        try {
            if (colon != std::string::npos) port_ = std::stoi(rest.substr(colon + 1));
        } catch (const std::exception&) {
            throw std::runtime_error("store: write redis://HOST:PORT/DB");
        }
    }

    std::vector<std::optional<std::string>> get(const std::vector<std::string>& keys) override {
        std::vector<std::optional<std::string>> found(keys.size());
        if (keys.empty()) return found;
        Connection connection = taken();
        std::vector<const char*> words{"MGET"};
        std::vector<size_t> lengths{4};
        for (const auto& key : keys) {
            words.push_back(key.data());
            lengths.push_back(key.size());
        }
        const Reply reply(static_cast<redisReply*>(redisCommandArgv(connection.get(), int(words.size()), words.data(),
                                                                    lengths.data())),
                          freed);
        // A connection that has failed is not given back.
        if (!reply || reply->type != REDIS_REPLY_ARRAY || reply->elements != keys.size())
            throw Down("store: " + host_ + " does not answer");
        for (size_t i = 0; i < keys.size(); ++i)
            if (reply->element[i]->type == REDIS_REPLY_STRING)
                found[i].emplace(reply->element[i]->str, reply->element[i]->len);
        const std::lock_guard<std::mutex> lock(mutex_);
        idle_.push_back(std::move(connection));
        return found;
    }

  private:
    using Connection = std::unique_ptr<redisContext, void (*)(redisContext*)>;
    using Reply = std::unique_ptr<redisReply, void (*)(redisReply*)>;

    static void freed(redisReply* reply) {
        if (reply) freeReplyObject(reply);
    }

    Connection taken() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!idle_.empty()) {
                Connection connection = std::move(idle_.back());
                idle_.pop_back();
                return connection;
            }
        }
        const timeval limit{0, 200'000};
        Connection made(redisConnectWithTimeout(host_.c_str(), port_, limit), redisFree);
        if (!made || made->err || redisSetTimeout(made.get(), limit) != REDIS_OK)
            throw Down("store: " + host_ + " does not answer");
        if (!password_.empty()) asked(made.get(), "AUTH", password_);
        if (!database_.empty()) asked(made.get(), "SELECT", database_);
        return made;
    }

    void asked(redisContext* connection, const char* word, const std::string& value) const {
        const Reply reply(
            static_cast<redisReply*>(redisCommand(connection, "%s %b", word, value.data(), value.size())), freed);
        if (!reply) throw Down("store: " + host_ + " does not answer");
        if (reply->type == REDIS_REPLY_ERROR) throw Down("store: " + host_ + " refuses " + word);
    }

    std::string host_, password_, database_;
    int port_ = 6379;
    std::mutex mutex_;
    std::vector<Connection> idle_;
};
#endif

}  // namespace

std::unique_ptr<Place> open(const std::string& place) {
    if (place.rfind("redis://", 0) == 0) {
#ifdef LIVETRAIN_REDIS
        return std::make_unique<Redis>(place);
#else
        throw std::runtime_error("store: Redis is not built in; install libhiredis-dev and build again");
#endif
    }
    if (place.find("://") != std::string::npos) throw std::runtime_error("store: a folder, or redis://HOST:PORT/DB");
#ifdef LIVETRAIN_LMDB
    return std::make_unique<Lmdb>(place);
#else
    throw std::runtime_error("store: LMDB is not built in; install liblmdb-dev and build again");
#endif
}

}  // namespace store
