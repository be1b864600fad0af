// The two copies between decoded columns and a batch. trainers/data/read/records.py says what a record is, and has the same
// in NumPy.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// What decoded rows take in memory, in this order: the number of the first one, negative where they could not be read;
// addresses of every feature's values, and of where those of each row begin and end (neither: one value per row), of
// further int64 columns, and of float columns, each of which holds `widths` numbers per row, side by side.
using Columns = const int64_t*;

template <typename T>
inline const T* pointer(int64_t address) {
  return reinterpret_cast<const T*>(address);
}

// Rows [start, stop) of some columns.
struct Slice {
  Columns columns;
  int64_t start, stop;
};

struct Place {
  Columns columns;
  int64_t row;
};

struct List {
  const int64_t* ids;
  int64_t count;
};

struct Block {
  int64_t first;      // step of the first record
  const int64_t* at;  // where each step's record begins in `records`
  const int64_t* records;
  const int64_t* marks;  // where each step's rows begin in `floats`
  const float* floats;
};

inline int64_t* copy(const int64_t* from, int64_t n, int64_t* to) {
  std::memcpy(to, from, n * sizeof(int64_t));
  return to + n;
}

}  // namespace

extern "C" {

// Return how many ids some slices have, of at most limits[f] per row.
int64_t ids(int64_t slices, int64_t features, const Slice* slice, const int64_t* limits) {
  int64_t sum = 0;
  for (int64_t s = 0; s < slices; ++s) {
    const int64_t start = slice[s].start, stop = slice[s].stop;
    for (int64_t f = 0; f < features; ++f) {
      const auto *begins = pointer<int64_t>(slice[s].columns[2 + 3 * f]),
                 *ends = pointer<int64_t>(slice[s].columns[3 + 3 * f]);
      if (!begins) sum += stop - start;
      for (int64_t i = start; begins && i < stop; ++i) sum += std::min(ends[i] - begins[i], limits[f]);
    }
  }
  return sum;
}

// Write the records of a window's steps one after the other to `out`, where each of them begins to `at` (steps + 1,),
// and the rows' floats to `floats` (rows, sum of the float columns' widths). The window's rows are those of the slices, one slice after the other;
// step k has order[marks[k]] ... order[marks[k + 1] - 1] of them, or these numbers themselves without an order.
void pack(int64_t steps, int64_t slices, int64_t features, int64_t others, int64_t numbers, const Slice* slice,
          const int64_t* limits, const int64_t* widths, const int64_t* order, const int64_t* marks, int64_t* out,
          int64_t* at, float* floats) {
  const int64_t* const begin = out;
  std::vector<int64_t> ends(slices);
  for (int64_t s = 0; s < slices; ++s) ends[s] = (s ? ends[s - 1] : 0) + slice[s].stop - slice[s].start;
  const bool narrow = std::all_of(widths, widths + numbers, [](int64_t width) { return width == 1; });
  std::vector<Place> places;
  std::vector<List> lists;
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t m = marks[k + 1] - marks[k];
    at[k] = out - begin;
    int64_t *head = out, *sums = head + 2, *cuts = sums + features;
    out = std::fill_n(out, 2 + 2 * features, 0);
    head[0] = m;
    places.clear();
    for (int64_t i = marks[k]; i < marks[k + 1]; ++i) {
      const int64_t row = order ? order[i] : i;
      int64_t s = 0;
      while (row >= ends[s]) ++s;
      const Columns columns = slice[s].columns;
      const int64_t place = slice[s].stop - (ends[s] - row);
      places.push_back({columns, place});
      *out++ = columns[0] < 0 ? -1 : columns[0] + place;
      head[1] += columns[0] < 0;
    }
    for (int64_t p = 1 + 3 * features; p < 1 + 3 * features + others; ++p) {
      for (const Place& place : places) *out++ = pointer<int64_t>(place.columns[p])[place.row];
    }
    lists.clear();
    for (int64_t f = 0; f < features; ++f) {
      for (const Place& place : places) {
        const auto *values = pointer<int64_t>(place.columns[1 + 3 * f]),
                   *begins = pointer<int64_t>(place.columns[2 + 3 * f]),
                   *ends = pointer<int64_t>(place.columns[3 + 3 * f]);
        const int64_t begin = begins ? begins[place.row] : place.row;
        const int64_t end = begins ? ends[place.row] : place.row + 1;
        const int64_t kept = std::min(end - begin, limits[f]);
        lists.push_back({values + end - kept, kept});
        for (int64_t i = end - kept; i < end; i += 8) __builtin_prefetch(values + i);  // copied only in the next loop
        *out++ = kept;
        sums[f] += kept;
        cuts[f] += kept < end - begin;
      }
    }
    for (const List& list : lists) {
      if (list.count == 1) *out++ = *list.ids;
      else out = copy(list.ids, list.count, out);
    }
    for (const Place& place : places) {
      const int64_t* columns = place.columns + 1 + 3 * features + others;
      for (int64_t n = 0; narrow && n < numbers; ++n) *floats++ = pointer<float>(columns[n])[place.row];
      for (int64_t n = 0; !narrow && n < numbers; ++n) {
        const float* from = pointer<float>(columns[n]) + place.row * widths[n];
        if (widths[n] == 1) *floats++ = *from;
        else floats = std::copy_n(from, widths[n], floats);
      }
    }
  }
  at[steps] = out - begin;
}

// Add up the heads (2 + 2 features,) of a step's records, which `join` reads next.
void heads(int64_t step, int64_t blocks, int64_t features, const Block* const* block, int64_t* sums) {
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t k = step - block[b]->first;
    const int64_t *record = block[b]->records + block[b]->at[k], *end = block[b]->records + block[b]->at[k + 1];
    for (const int64_t* line = record; line < end; line += 64 / sizeof(int64_t)) __builtin_prefetch(line);
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
