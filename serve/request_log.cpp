#include "request_log.h"

#include <ATen/ops/empty.h>
#include <arrow/api.h>
#include <arrow/io/file.h>
#include <fcntl.h>
#include <parquet/arrow/writer.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <iostream>
#include <map>
#include <random>

namespace serve {
namespace {

constexpr size_t kGroup = 1000;                    // rows of a row group
constexpr std::chrono::seconds kAgain(10);         // after a failure
using Clock = std::chrono::steady_clock;
using Type = std::shared_ptr<arrow::DataType>;

void must(const arrow::Status& status) {
    if (!status.ok()) throw std::runtime_error(status.ToString());
}

template <typename Value>
Value must(arrow::Result<Value> result) {
    must(result.status());
    return std::move(result).ValueUnsafe();
}

std::string formatted(int64_t milliseconds, const char* format) {
    const std::time_t seconds = milliseconds / 1000;
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    char text[32];
    return std::string(text, std::strftime(text, sizeof(text), format, &parts));
}

size_t size_of(const Columns& columns) {
    size_t bytes = 0;
    for (const auto& each : columns) bytes += each.value().nbytes();
    return bytes;
}

size_t size_of(const Logged& row) {
    size_t bytes = 1024 + size_of(row.request.ids) + size_of(row.request.lengths) + size_of(row.request.dense);
    for (const auto& channel : row.request.channel) bytes += channel.size() + sizeof(channel);
    for (const auto& [task, scores] : row.scores) bytes += scores.nbytes();
    return bytes;
}

Columns copied(const Columns& columns) {
    Columns found;
    for (const auto& each : columns) found.insert(each.key(), each.value().clone());
    return found;
}

// One feature of a request, by row.
struct Column {
    at::Tensor values;              // ids (n), or numbers (n) or (n, w)
    std::vector<int64_t> begins;    // where in them each row begins; one more than there are rows
    int64_t rows() const { return static_cast<int64_t>(begins.size()) - 1; }
};

Column column(const wire::Request& request, const std::string& name, const wire::Feature& feature, bool beside) {
    Column found{feature.ids && !beside ? request.ids.at(name) : request.dense.at(name), {0}};
    if (!feature.ids || !request.lengths.contains(name)) {
        for (int64_t row = 1; row <= found.values.size(0); ++row) found.begins.push_back(row);
        return found;
    }
    const auto& lengths = request.lengths.at(name);
    for (int64_t row = 0; row < lengths.numel(); ++row)
        found.begins.push_back(found.begins.back() + lengths.data_ptr<int64_t>()[row]);
    return found;
}

// Appends entry `at` of a column: an id, a number (null of NaN), or a vector (null where all of it is NaN).
void append(arrow::ArrayBuilder& builder, const at::Tensor& values, int64_t at) {
    if (values.scalar_type() == at::kLong) return must(static_cast<arrow::Int64Builder&>(builder).Append(values.data_ptr<int64_t>()[at]));
    const auto one = [](arrow::ArrayBuilder& to, float value) {
        auto& floats = static_cast<arrow::FloatBuilder&>(to);
        must(std::isnan(value) ? floats.AppendNull() : floats.Append(value));
    };
    if (values.dim() < 2) return one(builder, values.data_ptr<float>()[at]);
    auto& list = static_cast<arrow::ListBuilder&>(builder);
    const auto width = values.size(1);
    const auto* numbers = values.data_ptr<float>() + at * width;
    if (std::all_of(numbers, numbers + width, [](float each) { return std::isnan(each); })) return must(list.AppendNull());
    must(list.Append());
    for (int64_t place = 0; place < width; ++place) one(*list.value_builder(), numbers[place]);
}

// A feature's column of the file, or that of what lies beside its ids.
struct Field {
    std::string name;
    wire::Feature feature;
    bool beside;
    Type type() const {  // of one row
        Type entry = feature.ids && !beside ? arrow::int64() : arrow::float32();
        if ((beside ? feature.beside_width : feature.ids ? 1 : feature.width) > 1) entry = arrow::list(entry);
        return feature.ids && feature.lists ? arrow::list(entry) : entry;
    }
    void append_row(arrow::ArrayBuilder& builder, const Column& column, int64_t row) const {
        const auto begin = column.begins[row], end = column.begins[row + 1];
        if (!(feature.ids && feature.lists)) return begin == end ? must(builder.AppendNull()) : append(builder, column.values, begin);
        auto& list = static_cast<arrow::ListBuilder&>(builder);
        must(list.Append());
        for (auto at = begin; at < end; ++at) append(*list.value_builder(), column.values, at);
    }
};

std::vector<Field> fields(const wire::Signature& signature) {
    std::vector<Field> found;
    for (const auto& [name, feature] : signature.features) {
        found.push_back({name, feature, false});
        if (feature.ids && !feature.beside.empty()) found.push_back({name, feature, true});
    }
    return found;
}

}  // namespace

// The rows of one name that are not yet in a whole file.
class RequestLog::File {
  public:
    explicit File(RequestLog& log, std::string name) : log_(log), name_(std::move(name)) {}

    void add(Logged row) {
        const auto day = formatted(row.request.time, "%Y-%m-%d");
        const bool same = signature_ && (row.signature == signature_ || *row.signature == *signature_);
        if (!same || day != day_) close();
        if (held_.empty() && !writer_) begun_ = Clock::now(), day_ = day;
        if (!same) signature_ = row.signature, candidates_.clear();
        bytes_ += size_of(row);
        held_.push_back(std::move(row));
        if (held_.size() >= kGroup || bytes_ >= log_.config_.bytes) flush();
        if (rows_ >= log_.config_.rows) close();
    }

    void close_old() {
        if ((writer_ || !held_.empty()) && Clock::now() - begun_ >= std::chrono::seconds(log_.config_.seconds)) close();
    }

    void close() {
        flush();
        if (!writer_) return;
        try {
            must(writer_->Close());
            must(sink_->Close());
            const int file = ::open(draft_.c_str(), O_RDONLY);
            const bool kept = file >= 0 && ::fsync(file) == 0;
            if (file >= 0) ::close(file);
            if (!kept) throw std::runtime_error("it cannot be written to the disk");
            const auto whole = draft_.parent_path() / draft_.filename().string().substr(1);
            std::filesystem::rename(draft_, whole);
            log_.written_ += rows_;
        } catch (const std::exception& error) {
            failed(error);
        }
        writer_.reset(), sink_.reset(), rows_ = 0;
    }

  private:
    // Whose a feature is shows where there are several candidates: then the user's has one row. One that ever had a row per
    // candidate stays theirs, and so is one of which nothing is known yet.
    enum class Whose { unknown, user, candidates };

    void flush() {
        if (held_.empty()) return;
        const auto held = std::exchange(held_, {});
        bytes_ = 0;
        try {
            if (Clock::now() < again_) throw std::runtime_error("");
            const auto before = candidates_;
            for (const auto& row : held) learn(row);
            if (writer_ && before != candidates_) {  // its columns have other types now
                close();
                begun_ = Clock::now();
            }
            const auto table = made(held);
            if (!writer_) open(table->schema());
            must(writer_->WriteTable(*table, static_cast<int64_t>(held.size())));
            rows_ += static_cast<int64_t>(held.size());
        } catch (const std::exception& error) {
            log_.dropped_ += held.size();
            failed(error);
        }
    }

    void failed(const std::exception& error) {
        if (*error.what()) {
            again_ = Clock::now() + kAgain;
            std::cerr << "the log of requests loses " << rows_ << " rows and more: " << error.what() << std::endl;
        }
        log_.dropped_ += rows_;
        writer_.reset(), sink_.reset(), rows_ = 0;
        std::error_code ignored;
        if (!draft_.empty()) std::filesystem::remove(draft_, ignored);
    }

    void learn(const Logged& row) {
        for (const auto& field : fields(*signature_)) {
            auto& whose = candidates_[field.name];
            const auto rows = column(row.request, field.name, field.feature, false).rows();
            if (row.rows > 1 && rows == row.rows) whose = Whose::candidates;
            else if (row.rows != 1 && rows == 1 && whose == Whose::unknown) whose = Whose::user;
        }
    }

    void open(const std::shared_ptr<arrow::Schema>& schema) {
        const auto folder = log_.config_.path / name_ / ("date=" + day_);
        std::filesystem::create_directories(folder);
        const auto clock = formatted(std::chrono::duration_cast<std::chrono::milliseconds>(
                                         std::chrono::system_clock::now().time_since_epoch()).count(), "%H%M%S");
        for (;; ++number_) {
            const auto file = clock + "-" + log_.config_.host + "-" + std::to_string(number_) + ".parquet";
            draft_ = folder / ("." + file);
            const int made = ::open(draft_.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644);
            if (made < 0 && errno != EEXIST) throw std::runtime_error(draft_.string() + " cannot be made");
            if (made >= 0 && std::filesystem::exists(folder / file)) ::close(made), std::filesystem::remove(draft_);
            else if (made >= 0) {
                sink_ = must(arrow::io::FileOutputStream::Open(made));
                break;
            }
        }
        ++number_;
        const auto properties = parquet::WriterProperties::Builder().compression(arrow::Compression::ZSTD)->build();
        writer_ = must(parquet::arrow::FileWriter::Open(*schema, arrow::default_memory_pool(), sink_, properties));
    }

    std::shared_ptr<arrow::Table> made(const std::vector<Logged>& held) {
        std::vector<std::shared_ptr<arrow::Field>> schema;
        std::vector<std::shared_ptr<arrow::Array>> arrays;
        const auto add = [&](const std::string& name, const Type& type, auto&& append_to) {
            const auto builder = must(arrow::MakeBuilder(type));
            for (const auto& row : held) append_to(*builder, row);
            schema.push_back(arrow::field(name, type));
            arrays.push_back(must(builder->Finish()));
        };
        const auto text = [&](const char* name, auto&& of) {
            add(name, arrow::utf8(), [&](auto& to, const Logged& row) { must(static_cast<arrow::StringBuilder&>(to).Append(of(row))); });
        };
        const auto number = [&](const char* name, auto&& of) {
            add(name, arrow::int64(), [&](auto& to, const Logged& row) { must(static_cast<arrow::Int64Builder&>(to).Append(of(row))); });
        };
        const auto texts = [](arrow::ArrayBuilder& to, const std::vector<std::string>& values) {
            auto& list = static_cast<arrow::ListBuilder&>(to);
            must(list.Append());
            for (const auto& each : values) must(static_cast<arrow::StringBuilder*>(list.value_builder())->Append(each));
        };
        const auto floats = [](arrow::ArrayBuilder& to, const at::Tensor& values) {
            auto& list = static_cast<arrow::ListBuilder&>(to);
            if (!values.defined()) return must(list.AppendNull());
            must(list.Append());
            for (int64_t at = 0; at < values.numel(); ++at) append(*list.value_builder(), values, at);
        };
        text("request_id", [](const Logged& row) { return row.request.id; });
        number("time", [](const Logged& row) { return row.request.time; });
        text("model", [](const Logged& row) { return row.model.name; });
        text("version", [](const Logged& row) { return row.model.version; });
        number("fence", [](const Logged& row) { return row.model.fence; });
        number("delta", [](const Logged& row) { return row.model.delta; });
        for (const auto& field : fields(*signature_)) {
            const bool user = candidates_[field.name] == Whose::user;
            const auto name = field.beside ? field.name + "." + field.feature.beside : field.name;
            add(name, user ? field.type() : arrow::list(field.type()), [&](auto& to, const Logged& row) {
                const auto values = column(row.request, field.name, field.feature, field.beside);
                if (user) return field.append_row(to, values, 0);
                auto& list = static_cast<arrow::ListBuilder&>(to);
                must(list.Append());
                for (int64_t at = 0; at < row.rows; ++at)
                    field.append_row(*list.value_builder(), values, values.rows() == 1 ? 0 : at);
            });
        }
        add("stored", arrow::list(arrow::utf8()), [&](auto& to, const Logged& row) { texts(to, row.stored); });
        for (const auto& task : signature_->scores)
            add("scores." + task, arrow::list(arrow::float32()), [&](auto& to, const Logged& row) {
                for (const auto& [name, values] : row.scores)
                    if (name == task) return floats(to, values);
                must(to.AppendNull());
            });
        add("order", arrow::list(arrow::int32()), [&](auto& to, const Logged& row) {
            auto& list = static_cast<arrow::ListBuilder&>(to);
            if (!row.order.defined()) return must(list.AppendNull());
            must(list.Append());
            for (int64_t at = 0; at < row.order.numel(); ++at)
                must(static_cast<arrow::Int32Builder*>(list.value_builder())->Append(static_cast<int32_t>(row.order.data_ptr<int64_t>()[at])));
        });
        add("prerank", arrow::list(arrow::float32()), [&](auto& to, const Logged& row) { floats(to, row.prerank); });
        add("channel", arrow::list(arrow::utf8()), [&](auto& to, const Logged& row) {
            if (row.request.channel.empty()) return must(to.AppendNull());
            texts(to, row.request.channel);
        });
        return arrow::Table::Make(arrow::schema(schema), arrays);
    }

    RequestLog& log_;
    const std::string name_;
    std::shared_ptr<const wire::Signature> signature_;
    std::map<std::string, Whose> candidates_;
    std::vector<Logged> held_;
    size_t bytes_ = 0;
    int64_t rows_ = 0, number_ = 0;
    std::string day_;
    std::filesystem::path draft_;
    Clock::time_point begun_, again_;
    std::shared_ptr<arrow::io::FileOutputStream> sink_;
    std::unique_ptr<parquet::arrow::FileWriter> writer_;
};

RequestLog::RequestLog(LogConfig config) : config_([&] {
    if (config.host.empty()) {
        char name[256] = "";
        ::gethostname(name, sizeof(name) - 1);
        config.host = name;
    }
    return std::move(config);
}()) {
    std::error_code failed;
    std::filesystem::create_directories(config_.path, failed);
    if (failed || ::access(config_.path.c_str(), W_OK) != 0)
        throw std::runtime_error("log: " + config_.path.string() + " cannot be written; name a folder that can");
    thread_ = std::thread([this] { work(); });
}

RequestLog::~RequestLog() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
}

bool RequestLog::wanted() const {
    static thread_local std::mt19937_64 random{std::random_device{}()};
    return std::uniform_real_distribution<double>()(random) < config_.share;
}

void RequestLog::put(const Logged& given) {
    const auto size = size_of(given);
    {
        const std::lock_guard lock(mutex_);
        if (stopping_ || waiting_.size() >= config_.waiting || bytes_ + size > config_.bytes) {
            ++dropped_;
            return;
        }
    }
    Logged row = given;
    row.request.ids = copied(given.request.ids);
    row.request.lengths = copied(given.request.lengths);
    row.request.dense = copied(given.request.dense);
    const std::lock_guard lock(mutex_);
    bytes_ += size;
    waiting_.push_back(std::move(row));
    wake_.notify_one();
}

void RequestLog::work() {
    std::map<std::string, File> files;
    for (bool ends = false; !ends;) {
        std::vector<Logged> rows;
        {
            std::unique_lock lock(mutex_);
            wake_.wait_for(lock, std::chrono::seconds(1), [&] { return stopping_ || !waiting_.empty(); });
            rows.swap(waiting_);
            bytes_ = 0;
            ends = stopping_;
        }
        for (auto& row : rows) {
            auto name = row.name;
            files.try_emplace(name, *this, name).first->second.add(std::move(row));
        }
        for (auto& [name, file] : files) file.close_old();
    }
    for (auto& [name, file] : files) file.close();
}

}  // namespace serve
