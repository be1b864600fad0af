// What the passes of this folder are made of: vectors, products of small matrices, sums of threads, and threads.
//
// For sources that are compiled with REAL as the type of their numbers.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#ifndef REAL
#define REAL float
#endif

// OpenMP's runtime, where PyTorch has loaded one: its threads go on waiting, busily, after PyTorch's own work, and other
// threads would have to share the processors with them. No header: no compiler need know OpenMP.
extern "C" {
[[gnu::weak]] void GOMP_parallel(void (*)(void*), void*, unsigned threads, unsigned flags);
[[gnu::weak]] int omp_get_thread_num();
[[gnu::weak]] int omp_get_num_threads();
}

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, REGISTERS = 24, ACROSS = 4;  // of a vector; accumulators; vectors side by side
#else
constexpr int BYTES = 32, REGISTERS = 12, ACROSS = 2;
#endif
constexpr int64_t CHUNK = 48;  // events, a multiple of what `rows` takes at a time
constexpr int64_t FEW = 512;  // events whose sum in float32 is as good as any

using T = REAL;
typedef T V __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
constexpr int64_t LANES = BYTES / sizeof(T);

inline V& at(T* p) { return *reinterpret_cast<V*>(p); }
inline const V& at(const T* p) { return *reinterpret_cast<const V*>(p); }

// An array of T whose rows of vectors, like a tensor's, begin with a line of the cache: a vector across two lines is
// loaded twice.
template <typename Item>
struct Lined {
  using value_type = Item;
  static constexpr std::align_val_t LINE{64};
  Item* allocate(size_t n) { return static_cast<Item*>(::operator new(n * sizeof(Item), LINE)); }
  void deallocate(Item* p, size_t) { ::operator delete(p, LINE); }
  bool operator==(const Lined&) const { return true; }
  bool operator!=(const Lined&) const { return false; }
};
using Array = std::vector<T, Lined<T>>;

template <int64_t N>
inline T total(const T* p) {
  if constexpr (N == 1) return *p;
  else return total<N / 2>(p) + total<N / 2>(p + N / 2);
}
inline T total(V v) {  // in pairs: one after the other each would wait for the one before
  T lanes[LANES];
  at(lanes) = v;
  return total<LANES>(lanes);
}

// Rows [from, n) of A B, ACROSS vectors of columns at most: in the fewest groups of up to R rows, as even as can be: few
// rows at a time leave the processor waiting for the sums before. These stay in registers.
template <int C, int R, typename Emit>
inline void rows(int64_t from, int64_t n, int64_t inner, const T* a, int64_t row, int64_t step, const T* b,
                 int64_t width, Emit emit) {
  const int64_t groups = (n - from + R - 1) / R;
  for (int64_t of_all = n - from - groups * (R - 1); of_all > 0; --of_all, from += R) {  // the others have fewer rows
    V sum[R][C] = {};
    const T* a_k = a + from * row;
    const T* b_k = b;
    for (int64_t k = 0; k < inner; ++k, a_k += step, b_k += width) {
      V right[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) right[c] = at(b_k + c * LANES);
#pragma GCC unroll 32
      for (int r = 0; r < R; ++r) {
        const V left = a_k[r * row] - V{};
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] += left * right[c];
      }
    }
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) emit(from + r, c * LANES, sum[r][c]);
    }
  }
  if constexpr (R > 1) rows<C, R - 1>(from, n, inner, a, row, step, b, width, emit);
}

// emit(i, j, v) for every row i < n and vector v of columns j... of A B, where A[i][k] = a[i * row + k * step] and B is
// (inner, width). A step of 1 reads A by rows, a row of 1 transposed.
template <typename Emit>
inline void product_of(int64_t n, int64_t inner, int64_t width, const T* a, int64_t row, int64_t step, const T* b,
                       Emit emit) {
  int64_t j = 0;
  const auto shifted = [&](int64_t i, int64_t column, V v) { emit(i, j + column, v); };
  for (; j + ACROSS * LANES <= width; j += ACROSS * LANES)
    rows<ACROSS, REGISTERS / ACROSS>(0, n, inner, a, row, step, b + j, width, shifted);
  for (; j + 2 * LANES <= width; j += 2 * LANES)
    rows<2, REGISTERS / 2>(0, n, inner, a, row, step, b + j, width, shifted);
  for (; j < width; j += LANES) rows<1, 12>(0, n, inner, a, row, step, b + j, width, shifted);
}

// e^x for |x| <= 87, else of the nearest such x: 2^n e^r with |r| <= ln(2) / 2, where the first terms of Taylor's
// series are exact to float32. The library's is a call, around which no loop is vectorised.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2), in two parts
  float y = 1.0f / 5040;
  for (float divisor : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) y = y * r + 1.0f / divisor;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}
inline double exponential(double x) { return std::exp(x); }

// A thread's sums: made in T over FEW rows, kept in double if there are more, added to the caller's array by `into` when
// all are done.
struct Sums {
  Array few;
  std::vector<double> all;
  int64_t rows = 0;  // in `few`
  explicit Sums(int64_t size) : few(size, T(0)) {}
  void fold(int64_t n) {
    if ((rows += n) < FEW) return;
    all.resize(few.size());
    for (size_t j = 0; j < few.size(); ++j) all[j] += few[j], few[j] = T(0);
    rows = 0;
  }
  void into(T* out) const {
    for (size_t j = 0; j < few.size(); ++j) out[j] += all.empty() ? few[j] : static_cast<T>(all[j] + few[j]);
  }
};

inline int64_t room(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// out (n, width) = A B, or out += A B: see `product_of`. Not inlined: all products of a file share the code of these two.
[[gnu::noinline]] void multiply(int64_t n, int64_t inner, int64_t width, const T* a, int64_t row, int64_t step,
                                const T* b, T* out) {
  product_of(n, inner, width, a, row, step, b, [&](int64_t i, int64_t j, V v) { at(out + i * width + j) = v; });
}
[[gnu::noinline]] void multiply_add(int64_t n, int64_t inner, int64_t width, const T* a, int64_t row, int64_t step,
                                    const T* b, T* out) {
  product_of(n, inner, width, a, row, step, b, [&](int64_t i, int64_t j, V v) { at(out + i * width + j) += v; });
}

// The sum of term(j) over j < n, in as many sums as a vector has lanes: in order each would wait for the one before.
template <typename Term>
inline T over(int64_t n, const Term& term) {
  T sums[LANES] = {};
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) {
#pragma GCC ivdep
    for (int64_t l = 0; l < LANES; ++l) sums[l] += term(j + l);
  }
  for (; j < n; ++j) sums[0] += term(j);
  return total<LANES>(sums);
}

// The largest of n >= 1 numbers, likewise.
inline T largest(int64_t n, const T* x) {
  T most[LANES];
  std::fill_n(most, LANES, x[0]);
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) {
#pragma GCC ivdep
    for (int64_t l = 0; l < LANES; ++l) most[l] = x[j + l] > most[l] ? x[j + l] : most[l];
  }
  for (; j < n; ++j) most[0] = x[j] > most[0] ? x[j] : most[0];
  return *std::max_element(most, most + LANES);
}

// Some columns of n events that lie `step` numbers apart: `d` from `from`, times a factor, as (n, room(d)) ...
inline void part_of(int64_t n, int64_t step, int64_t from, int64_t d, T factor, const T* x, Array& out) {
  const int64_t D = room(d);
  out.resize(n * D);
  T* o = out.data();
  for (x += from; n > 0; --n, x += step, o += D) {
    int64_t c = 0;
    for (; c + LANES <= d; c += LANES) at(o + c) = factor * at(x + c);
    for (; c < D; ++c) o[c] = c < d ? factor * x[c] : T(0);
  }
}
// ... and turned, as (d, room(n))
inline void turned_part_of(int64_t n, int64_t step, int64_t from, int64_t d, T factor, const T* x, Array& out) {
  const int64_t N = room(n);
  out.resize(d * N);
  T* o = out.data();
  for (int64_t c = 0; c < d; ++c, o += N) {
    for (int64_t i = 0; i < N; ++i) o[i] = i < n ? factor * x[i * step + from + c] : T(0);
  }
}

// Call work(thread, from, to) over [0, n) in as many parts as there are threads, this one included, but none of few.
template <typename Work>
void share(int64_t n, int64_t threads, const Work& work) {
  const int64_t parts = std::max<int64_t>(1, std::min(threads, n / CHUNK));
  const auto part = [&](int64_t t) { work(t, n * t / parts, n * (t + 1) / parts); };
  if (parts == 1) {
    part(0);
  } else if (GOMP_parallel && omp_get_thread_num && omp_get_num_threads) {
    const std::pair<int64_t, decltype(part)&> all{parts, part};
    const auto some = [](void* data) {  // there may be fewer threads than were asked for
      const auto& [parts, part] = *static_cast<decltype(all)*>(data);
      for (int64_t t = omp_get_thread_num(); t < parts; t += omp_get_num_threads()) part(t);
    };
    GOMP_parallel(some, const_cast<void*>(static_cast<const void*>(&all)), parts, 0);
  } else {
    std::vector<std::thread> others;
    for (int64_t t = 1; t < parts; ++t) others.emplace_back(part, t);
    part(0);
    for (auto& other : others) other.join();
  }
}

// out (H,) += the sum of the rows of x
inline void add_rows(int64_t n, int64_t H, const T* x, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i, x += H) {
#pragma GCC ivdep
    for (int64_t j = 0; j < H; ++j) out[j] += x[j];
  }
}

}  // namespace
