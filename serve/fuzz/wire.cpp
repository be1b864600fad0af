// libFuzzer: requests in both forms. The first byte says which, and where the JSON of a binary one ends.
//
// What is not refused is checked and answered, and every number is read that a model would read.

#include <ATen/ops/empty.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../wire.h"

static const wire::Signature& signature() {
    static const auto read = wire::Signature::read(std::getenv("SIGNATURE"));
    return read;
}

static uint64_t sum(const Columns& columns) {
    uint64_t total = 0;
    for (const auto& entry : columns) {
        const auto* bytes = static_cast<const unsigned char*>(entry.value().data_ptr());
        for (size_t at = 0; at < entry.value().nbytes(); ++at) total += bytes[at];
    }
    return total;
}

static void answered(const wire::Request& request, int64_t rows) {
    auto scores = at::empty({rows}, at::kFloat);
    std::memset(scores.data_ptr(), 0, scores.nbytes());
    const wire::Answer answer{{"din", "1", 1, 0}, {{"click", scores}}, {}, {}};
    const auto reply = wire::answer_binary(request, answer);
    if (reply.header > reply.body.size() || wire::answer_json(request, answer).empty()) std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 3) return 0;
    const std::string body(reinterpret_cast<const char*>(data) + 3, size - 3);
    try {
        const auto request =
            data[0] == 'j' ? wire::parse_json(body, signature())
                           : wire::parse_binary(body, (data[1] << 8 | data[2]) % (body.size() + 1), signature());
        volatile auto read = sum(request.ids) + sum(request.lengths) + sum(request.dense);
        (void)read;
        answered(request, wire::check(request, signature()));
    } catch (const wire::BadRequest& error) {
        if (std::strlen(error.what()) > 400 || error.status < 400 || error.status > 499) std::abort();
        wire::error_json(error.what());
    }
    return 0;
}
