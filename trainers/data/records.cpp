// The two copies between decoded columns and a batch. trainers/data/records.py says what a record is, and has the same
// in NumPy.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

inline int64_t* copy(const int64_t* from, int64_t n, int64_t* to) {
  std::memcpy(to, from, n * sizeof(int64_t));
  return to + n;
}

// A feature's values in one piece of a window: row i has values[i] without offsets, else values[offsets[i]] ...
// values[offsets[i + 1] - 1], of which the last `limit` count.
struct Column {
  const int64_t *values, *offsets;
};

struct Block {
  int64_t first;      // step of the first record
  const int64_t* at;  // where each step's record begins in `records`
  const int64_t* records;
  const int64_t* marks;  // where each step's rows begin in `floats`
  const float* floats;
};

struct Place {
  int64_t piece, row;
};

}  // namespace

extern "C" {

// Write the records of a window's steps one after the other to `out`, and where each of them begins to `at`
// (steps + 1,). Step k has the window's rows order[marks[k]] ... order[marks[k + 1] - 1], or these numbers themselves
// without an order; the window is cut into pieces at `bounds` (pieces + 1,). `plain` (plains, rows) are columns of one
// value a row, of which the first one tells unreadable rows by a negative number; columns are (features, pieces).
void pack(int64_t steps, int64_t pieces, int64_t plains, int64_t features, const int64_t* marks, const int64_t* bounds,
          const int64_t* order, const int64_t* plain, const Column* columns, const int64_t* limits, int64_t* out,
          int64_t* at) {
  const int64_t* const begin = out;
  const int64_t rows = marks[steps];
  std::vector<Place> places;
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t m = marks[k + 1] - marks[k];
    at[k] = out - begin;
    int64_t *head = out, *sums = head + 2, *cuts = sums + features;
    out = std::fill_n(out, 2 + 2 * features, 0);
    head[0] = m;
    places.clear();
    for (int64_t i = marks[k]; i < marks[k + 1]; ++i) {
      const int64_t row = order ? order[i] : i;
      int64_t piece = 0;
      while (row >= bounds[piece + 1]) ++piece;
      places.push_back({piece, row - bounds[piece]});
      head[1] += plain[row] < 0;
    }
    for (int64_t p = 0; p < plains; ++p) {
      for (const Place& place : places) *out++ = plain[p * rows + bounds[place.piece] + place.row];
    }
    for (int64_t f = 0; f < features; ++f) {
      for (const Place& place : places) {
        const int64_t* offsets = columns[f * pieces + place.piece].offsets;
        const int64_t stored = offsets ? offsets[place.row + 1] - offsets[place.row] : 1;
        const int64_t kept = std::min(stored, limits[f]);
        *out++ = kept;
        sums[f] += kept;
        cuts[f] += kept < stored;
      }
    }
    for (int64_t f = 0; f < features; ++f) {
      for (const Place& place : places) {
        const Column& column = columns[f * pieces + place.piece];
        if (column.offsets) {
          const int64_t end = column.offsets[place.row + 1], kept = std::min(end - column.offsets[place.row], limits[f]);
          out = copy(column.values + end - kept, kept, out);
        } else {
          *out++ = column.values[place.row];
        }
      }
    }
  }
  at[steps] = out - begin;
}

// Add up the heads (2 + 2 features,) of a step's records.
void heads(int64_t step, int64_t blocks, int64_t features, const Block* const* block, int64_t* sums) {
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t* record = block[b]->records + block[b]->at[step - block[b]->first];
    for (int64_t i = 0; i < 2 + 2 * features; ++i) sums[i] += record[i];
  }
}

// Put a step's records together, column by column: plain (plains, B), then lengths (features, B) and the values of
// every feature, and floats (B, width). `sums` are those of `heads`.
void join(int64_t step, int64_t blocks, int64_t plains, int64_t features, int64_t width, const int64_t* sums,
          const Block* const* block, int64_t* plain, int64_t* ids, float* floats) {
  const int64_t batch = sums[0];
  std::vector<int64_t*> ends(features, ids + features * batch);
  for (int64_t f = 1; f < features; ++f) ends[f] = ends[f - 1] + sums[1 + f];
  for (int64_t b = 0; b < blocks; ++b) {
    const Block& from = *block[b];
    const int64_t k = step - from.first, *head = from.records + from.at[k];
    const int64_t m = head[0], *lengths = head + 2, *next = lengths + 2 * features;
    for (int64_t p = 0; p < plains; ++p, next += m) copy(next, m, plain + p * batch);
    for (int64_t f = 0; f < features; ++f, next += m) copy(next, m, ids + f * batch);
    for (int64_t f = 0; f < features; next += lengths[f++]) ends[f] = copy(next, lengths[f], ends[f]);
    std::memcpy(floats, from.floats + from.marks[k] * width, m * width * sizeof(float));
    plain += m, ids += m, floats += m * width;
  }
}

}  // extern "C"
