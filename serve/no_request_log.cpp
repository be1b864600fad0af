// In the place of request_log.cpp where there is no Arrow.

#include "request_log.h"

namespace serve {

RequestLog::RequestLog(LogConfig) {
    throw std::runtime_error("log: this server was built without Arrow and Parquet; build it where pyarrow is installed");
}
RequestLog::~RequestLog() = default;
bool RequestLog::wanted() const { return false; }
void RequestLog::put(const Logged&) {}

}  // namespace serve
