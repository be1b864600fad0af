// Every row of a batch against the other rows, in training on a CPU: modules/layers/others.py computes the same.
//
// Scores are made for CHUNK rows and BLOCK columns at a time, stay in the cache, and are made again on the way back.

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 512;  // columns
constexpr T NEVER = T(-1e30);   // a score that does not count; the log of a sum of nothing

// scores (n, room(N)) of n rows and N columns, these turned, with their bias; NEVER where a column is none of a row's others
inline void scores_of(int64_t n, int64_t N, int64_t d, const T* rows, const T* turned, const T* bias,
                      const int64_t* mark, const int64_t* marks, T* scores) {
  multiply(n, d, room(N), rows, d, 1, turned, scores);
  for (int64_t i = 0; i < n; ++i) {
    T* __restrict s = scores + i * room(N);
    const int64_t own = mark[i];
#pragma GCC ivdep
    for (int64_t j = 0; j < N; ++j) {
      const T score = s[j] + bias[j];
      s[j] = own == marks[j] || score < NEVER ? NEVER : score;  // what is not a number stays so
    }
  }
}

}  // namespace

extern "C" {

// total (B,), NEVER before: log sum_j exp(rows_i . columns_j + bias_j) over the columns whose mark is another than the
// row's; rows (B, d), columns (N, d).
void others_forward(int64_t B, int64_t N, int64_t d, const T* rows, const T* columns, const T* bias,
                    const int64_t* mark, const int64_t* marks, T* total, int64_t threads) {
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    Array turned, scores(CHUNK * BLOCK);
    for (int64_t j = 0; j < N; j += BLOCK) {
      const int64_t columns_here = std::min(BLOCK, N - j);
      turned_part_of(columns_here, d, 0, d, T(1), columns + j * d, turned);
      for (int64_t i = from; i < to; i += CHUNK) {
        const int64_t n = std::min(CHUNK, to - i);
        scores_of(n, columns_here, d, rows + i * d, turned.data(), bias + j, mark + i, marks + j, scores.data());
        for (int64_t r = 0; r < n; ++r) {
          const T *s = scores.data() + r * room(columns_here), before = total[i + r];
          const T most = std::max(before, largest(columns_here, s));
          const T sum = over(columns_here, [&](int64_t c) { return exponential(s[c] - most); });
          const bool none = most <= NEVER && sum == sum;
          if (!none) total[i + r] = most + std::log(sum + (before > NEVER ? std::exp(before - most) : T(0)));
        }
      }
    }
  });
}

// Back through it from d_total (B,): d_rows (B, d), zeros before, and d_columns (N, d); d is a multiple of 16.
void others_backward(int64_t B, int64_t N, int64_t d, const T* rows, const T* columns, const T* bias,
                     const int64_t* mark, const int64_t* marks, const T* total, const T* d_total, T* d_rows,
                     T* d_columns, int64_t threads) {
  for (int64_t j = 0; j < N; j += BLOCK) {
    const int64_t columns_here = std::min(BLOCK, N - j), width = room(columns_here);
    std::vector<Sums> sums(threads, Sums(columns_here * d));
    share(B, threads, [&](int64_t thread, int64_t from, int64_t to) {
      Array turned, scores(CHUNK * BLOCK);
      turned_part_of(columns_here, d, 0, d, T(1), columns + j * d, turned);
      for (int64_t i = from; i < to; i += CHUNK) {
        const int64_t n = std::min(CHUNK, to - i);
        scores_of(n, columns_here, d, rows + i * d, turned.data(), bias + j, mark + i, marks + j, scores.data());
        for (int64_t r = 0; r < n; ++r) {
          T* __restrict s = scores.data() + r * width;
          const T level = total[i + r], slope = level <= NEVER ? T(0) : d_total[i + r];
#pragma GCC ivdep
          for (int64_t c = 0; c < columns_here; ++c) s[c] = exponential(s[c] - level) * slope;
        }
        multiply_add(n, columns_here, d, scores.data(), width, 1, columns + j * d, d_rows + i * d);
        multiply_add(columns_here, n, d, scores.data(), 1, width, rows + i * d, sums[thread].few.data());
        sums[thread].fold(n);
      }
    });
    std::fill_n(d_columns + j * d, columns_here * d, T(0));
    for (const Sums& part : sums) part.into(d_columns + j * d);
  }
}

}  // extern "C"
