// DIN's activation unit and towers with Dice in training, on a CPU: what modules/layers/attention.py and mlp.py compute,
// in a few passes over the events, or rows.
//
// Each exported function is one pass over all rows or events, cut among threads, a row or CHUNK events at a time, so that
// what lies between two matrix products never leaves the cache. Arrays are contiguous. H, M and K stand for numbers of
// columns; an upper-case one is a multiple of 16, its last columns zeros, so that vectors never end within a row.
//
// The first layer, W [q, e, q - e, q * e, s] + b, is a layer of its own for each row's events:
//     x = base_b + A_b e,  A_b = event + diag(q_b) product,  base_b = (Wq + Wd) q_b + b
// where e stands for [e, s] and q for [q, 0]: half the arithmetic of two products, and q * e is never built.

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

inline T sigmoid(T z) { return T(1) / (T(1) + exponential(-z)); }

// y = x (alpha + (1 - alpha) p), p = sigmoid(z), z = scale x + shift: Dice of one step, `curve` (3, H) being the three
inline void activate(int64_t n, int64_t H, const T* x, const T* curve, T* __restrict y) {
  const T *alpha = curve, *scale = curve + H, *shift = curve + 2 * H;
  for (int64_t i = 0; i < n; ++i, x += H, y += H) {
#pragma GCC ivdep
    for (int64_t j = 0; j < H; ++j) y[j] = x[j] * (alpha[j] + (T(1) - alpha[j]) * sigmoid(scale[j] * x[j] + shift[j]));
  }
}

// y; the gradient of x but for what the statistics add; and sums (3, H) += [d_alpha, d_z, d_z x]
inline void differentiate(int64_t n, int64_t H, const T* x, const T* gradient, const T* curve, T* __restrict y,
                          T* __restrict d_x, T* __restrict sums) {
  const T *alpha = curve, *scale = curve + H, *shift = curve + 2 * H;
  T* __restrict d_alpha = sums, * __restrict sum_z = sums + H, * __restrict sum_zx = sums + 2 * H;
  for (int64_t i = 0; i < n; ++i, x += H, gradient += H, y += H, d_x += H) {
#pragma GCC ivdep
    for (int64_t j = 0; j < H; ++j) {
      const T p = sigmoid(scale[j] * x[j] + shift[j]), rest = T(1) - alpha[j], gate = alpha[j] + rest * p;
      const T through = gradient[j] * x[j] * (T(1) - p), d_z = through * p * rest;
      y[j] = x[j] * gate;
      d_x[j] = gradient[j] * gate + d_z * scale[j];
      d_alpha[j] += through;
      sum_z[j] += d_z;
      sum_zx[j] += d_z * x[j];
    }
  }
}

// What the statistics, functions of every valid row, add to the gradient of x: valid (constant + slope x), `correction`
// (2, H) being the two
inline void complete(int64_t n, int64_t H, const T* d_x, const T* x, const T* correction, const T* valid, T* out) {
  const T *constant = correction, *slope = correction + H;
  for (int64_t i = 0; i < n; ++i, x += H, d_x += H, out += H) {
    const T weight = valid ? valid[i] : T(1);
#pragma GCC ivdep
    for (int64_t j = 0; j < H; ++j) out[j] = d_x[j] + weight * (constant[j] + slope[j] * x[j]);
  }
}

// Rows [i, i + n) of the gradient d_x (N, H) of x: completed in `room`, or as they are where no Dice follows x.
inline const T* completed(int64_t n, int64_t H, int64_t i, const T* d_x, const T* x, const T* correction, const T* valid,
                          T* room) {
  if (!correction) return d_x + i * H;
  complete(n, H, d_x + i * H, x + i * H, correction, valid ? valid + i : nullptr, room);
  return room;
}

// sums (2, H) += [x - centre, (x - centre)^2] over the valid rows
inline void moments(int64_t n, int64_t H, const T* x, const T* centre, const T* valid, T* __restrict sums) {
  T* __restrict first = sums, * __restrict second = sums + H;
  for (int64_t i = 0; i < n; ++i, x += H) {
    const T weight = valid ? valid[i] : T(1);
#pragma GCC ivdep
    for (int64_t j = 0; j < H; ++j) {
      const T distance = (x[j] - centre[j]) * weight;
      first[j] += distance;
      second[j] += distance * distance;
    }
  }
}

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

// The first row from b on that shares no events with the row before: where one thread's rows end and another's begin.
inline int64_t own(int64_t b, int64_t B, const int64_t* begins) {
  while (0 < b && b < B && begins[b] == begins[b - 1]) ++b;
  return b;
}

// out (H,) += the sum of the rows of x
inline void add_rows(int64_t n, int64_t H, const T* x, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i, x += H) {
#pragma GCC ivdep
    for (int64_t j = 0; j < H; ++j) out[j] += x[j];
  }
}

// A_b (K, H) of a row: event + diag(q) product.
inline void fold(int64_t K, int64_t H, const T* event, const T* product, const T* q, T* __restrict out) {
  for (int64_t k = 0; k < K; ++k, event += H, product += H, out += H) {
#pragma GCC ivdep
    for (int64_t j = 0; j < H; ++j) out[j] = event[j] + q[k] * product[j];
  }
}

// The same transposed: (H, K).
inline void turn(int64_t H, int64_t K, const T* event, const T* product, const T* q, T* __restrict out) {
  for (int64_t j = 0; j < H; ++j, event += K, product += K, out += K) {
#pragma GCC ivdep
    for (int64_t c = 0; c < K; ++c) out[c] = event[c] + q[c] * product[c];
  }
}

}  // namespace

extern "C" {

// x (M, H) = base_b + e A_b for the events of every row b of B, and its moments (2, H) around `centre`. Row b's pairs
// with its events begin at offsets[b], and these events in e (N, k) at begins[b]: rows that follow one another may share
// theirs.
void first_forward(int64_t B, int64_t k, int64_t H, const int64_t* offsets, const int64_t* begins, const T* e,
                   const T* q, const T* base, const T* event, const T* product, const T* centre, const T* valid, T* x,
                   T* sums, int64_t threads) {
  std::vector<Sums> found(threads, Sums(2 * H));
  share(B, threads, [&](int64_t thread, int64_t from, int64_t to) {
    Array layer(k * H);
    for (int64_t b = from; b < to; ++b) {
      const int64_t n = offsets[b + 1] - offsets[b];
      if (n == 0) continue;
      T* x_b = x + offsets[b] * H;
      fold(k, H, event, product, q + b * k, layer.data());
      product_of(n, k, H, e + begins[b] * k, k, 1, layer.data(),
                 [&](int64_t i, int64_t j, V v) { at(x_b + i * H + j) = v + at(base + b * H + j); });
      moments(n, H, x_b, centre, valid ? valid + offsets[b] : nullptr, found[thread].few.data());
      found[thread].fold(n);
    }
  });
  for (const auto& part : found) part.into(sums);
}

// out (N, m) = bias + y W, y = dice(x), and the moments (2, M) of out if there is a `centre`; W is (H, M), m <= M.
void next_forward(int64_t N, int64_t H, int64_t m, int64_t M, const T* x, const T* curve, const T* weight,
                  const T* bias, const T* centre, const T* valid, T* out, T* sums, int64_t threads) {
  std::vector<Sums> found(threads, Sums(2 * M));
  share(N, threads, [&](int64_t thread, int64_t from, int64_t to) {
    Array y(CHUNK * H), made(CHUNK * M);
    for (int64_t i = from; i < to; i += CHUNK) {
      const int64_t n = std::min(CHUNK, to - i);
      activate(n, H, x + i * H, curve, y.data());
      product_of(n, H, M, y.data(), H, 1, weight,
                 [&](int64_t r, int64_t j, V v) { at(made.data() + r * M + j) = v + at(bias + j); });
      for (int64_t r = 0; r < n; ++r) std::copy_n(made.data() + r * M, m, out + (i + r) * m);
      if (centre) {
        moments(n, M, made.data(), centre, valid ? valid + i : nullptr, found[thread].few.data());
        found[thread].fold(n);
      }
    }
  });
  if (centre) {
    for (const auto& part : found) part.into(sums);
  }
}

// Back through out = bias + dice(x) W from d_out (N, m): d_x (N, H), still to be completed, sums (3, H) of
// `differentiate`, and the gradients of W transposed, (m, H), and of the bias (m,). If out went into another Dice,
// d_out is completed by its `correction` (2, m), and `out` itself is needed.
void next_backward(int64_t N, int64_t H, int64_t m, const T* x, const T* curve, const T* weight, const T* d_out,
                   const T* out, const T* correction, const T* valid, T* d_x, T* sums, T* d_weight, T* d_bias,
                   int64_t threads) {
  std::vector<Sums> found(threads, Sums(3 * H)), weights(threads, Sums(m * H)), biases(threads, Sums(m));
  share(N, threads, [&](int64_t thread, int64_t from, int64_t to) {
    Array whole(CHUNK * m), d_y(CHUNK * H), y(CHUNK * H);
    for (int64_t i = from; i < to; i += CHUNK) {
      const int64_t n = std::min(CHUNK, to - i);
      const T* d = completed(n, m, i, d_out, out, correction, valid, whole.data());
      product_of(n, m, H, d, m, 1, weight, [&](int64_t r, int64_t j, V v) { at(d_y.data() + r * H + j) = v; });
      differentiate(n, H, x + i * H, d_y.data(), curve, y.data(), d_x + i * H, found[thread].few.data());
      product_of(m, n, H, d, 1, m, y.data(),
                 [&](int64_t r, int64_t j, V v) { at(weights[thread].few.data() + r * H + j) += v; });
      add_rows(n, m, d, biases[thread].few.data());
      found[thread].fold(n);
      weights[thread].fold(n);
      biases[thread].fold(n);
    }
  });
  for (int64_t t = 0; t < threads; ++t) {
    found[t].into(sums);
    weights[t].into(d_weight);
    biases[t].into(d_bias);
  }
}

// Back through the first layer from d_x (M, H), to be completed: d_e (N, k), zeros before, d_base (B, H), d_q (B, k)
// without what goes through base, and the gradients of event and product, (k, H). event_t and product_t are (H, K).
void first_backward(int64_t B, int64_t k, int64_t K, int64_t H, const int64_t* offsets, const int64_t* begins,
                    const T* e, const T* q, const T* product, const T* event_t, const T* product_t, const T* d_x,
                    const T* x, const T* correction, const T* valid, T* d_e, T* d_base, T* d_q, T* d_event,
                    T* d_product, int64_t threads) {
  std::vector<Sums> events(threads, Sums(k * H)), products(threads, Sums(k * H));
  share(B, threads, [&](int64_t thread, int64_t from, int64_t to) {
    Array whole, layer(H * K), wide(K, T(0)), made;
    for (int64_t b = own(from, B, begins), end = own(to, B, begins); b < end; ++b) {
      const int64_t first = offsets[b], n = offsets[b + 1] - first;
      if (n == 0) continue;
      whole.resize(std::max<size_t>(whole.size(), n * H));
      made.resize(std::max<size_t>(made.size(), n * K));
      T* d = whole.data();
      const T *q_b = q + b * k, *e_b = e + begins[b] * k;
      complete(n, H, d_x + first * H, x + first * H, correction, valid ? valid + first : nullptr, d);
      add_rows(n, H, d, d_base + b * H);
      std::copy_n(q_b, k, wide.data());
      turn(H, K, event_t, product_t, wide.data(), layer.data());
      T* d_e_b = d_e + begins[b] * k;
      if (K == k) {
        product_of(n, H, K, d, H, 1, layer.data(), [&](int64_t i, int64_t j, V v) { at(d_e_b + i * K + j) += v; });
      } else {
        product_of(n, H, K, d, H, 1, layer.data(), [&](int64_t i, int64_t j, V v) { at(made.data() + i * K + j) = v; });
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < k; ++j) d_e_b[i * k + j] += made[i * K + j];
        }
      }
      // The gradient of A_b first: added to the sums as it is made, it would keep the product waiting for memory.
      product_of(k, n, H, e_b, 1, k, d, [&](int64_t c, int64_t j, V v) { at(layer.data() + c * H + j) = v; });
      for (int64_t c = 0; c < k; ++c) {
        const T* of_layer = layer.data() + c * H;
        T *d_event_c = events[thread].few.data() + c * H, *d_product_c = products[thread].few.data() + c * H;
        V dot = {};
        for (int64_t j = 0; j < H; j += LANES) {
          const V v = at(of_layer + j);
          at(d_event_c + j) += v;
          at(d_product_c + j) += q_b[c] * v;
          dot += v * at(product + c * H + j);
        }
        d_q[b * k + c] = total(dot);
      }
      events[thread].fold(n), products[thread].fold(n);
    }
  });
  for (int64_t t = 0; t < threads; ++t) events[t].into(d_event), products[t].into(d_product);
}

// out (N, H) = bias + x W for x (N, k), and the moments (2, H) of out if there is a `centre`; W is (k, H).
void linear_forward(int64_t N, int64_t k, int64_t H, const T* x, const T* weight, const T* bias, const T* centre,
                    const T* valid, T* out, T* sums, int64_t threads) {
  std::vector<Sums> found(threads, Sums(2 * H));
  share(N, threads, [&](int64_t thread, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i += CHUNK) {
      const int64_t n = std::min(CHUNK, to - i);
      T* out_i = out + i * H;
      product_of(n, k, H, x + i * k, k, 1, weight,
                 [&](int64_t r, int64_t j, V v) { at(out_i + r * H + j) = v + at(bias + j); });
      if (centre) {
        moments(n, H, out_i, centre, valid ? valid + i : nullptr, found[thread].few.data());
        found[thread].fold(n);
      }
    }
  });
  if (centre) {
    for (const auto& part : found) part.into(sums);
  }
}

// Back through out = bias + x W from d_out (N, H), completed by its `correction` if `out` went into a Dice: d_x (N, k),
// and the gradients of W, (k, H), and of the bias (H,). weight_t is (H, K).
void linear_backward(int64_t N, int64_t k, int64_t K, int64_t H, const T* x, const T* weight_t, const T* d_out,
                     const T* out, const T* correction, const T* valid, T* d_x, T* d_weight, T* d_bias,
                     int64_t threads) {
  std::vector<Sums> weights(threads, Sums(k * H)), biases(threads, Sums(H));
  share(N, threads, [&](int64_t thread, int64_t from, int64_t to) {
    Array whole(CHUNK * H), made(CHUNK * K);
    for (int64_t i = from; i < to; i += CHUNK) {
      const int64_t n = std::min(CHUNK, to - i);
      const T* d = completed(n, H, i, d_out, out, correction, valid, whole.data());
      T* d_x_i = K == k ? d_x + i * k : made.data();
      product_of(n, H, K, d, H, 1, weight_t, [&](int64_t r, int64_t j, V v) { at(d_x_i + r * K + j) = v; });
      for (int64_t r = 0; r < n && K != k; ++r) std::copy_n(d_x_i + r * K, k, d_x + (i + r) * k);
      product_of(k, n, H, x + i * k, 1, k, d,
                 [&](int64_t c, int64_t j, V v) { at(weights[thread].few.data() + c * H + j) += v; });
      add_rows(n, H, d, biases[thread].few.data());
      weights[thread].fold(n);
      biases[thread].fold(n);
    }
  });
  for (int64_t t = 0; t < threads; ++t) weights[t].into(d_weight), biases[t].into(d_bias);
}

// pooled (B, k) = the sum of each row's events, of e (N, k), times their weights w (M,); see `first_forward`
void pool_forward(int64_t B, int64_t k, const int64_t* offsets, const int64_t* begins, const T* w, const T* e, T* pooled,
                  int64_t threads) {
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) {
      T* __restrict out = pooled + b * k;
      std::fill_n(out, k, T(0));
      const T* e_i = e + begins[b] * k;
      for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i, e_i += k) {
#pragma GCC ivdep
        for (int64_t j = 0; j < k; ++j) out[j] += w[i] * e_i[j];
      }
    }
  });
}

void pool_backward(int64_t B, int64_t k, const int64_t* offsets, const int64_t* begins, const T* w, const T* e,
                   const T* d_pooled, T* d_w, T* d_e, int64_t threads) {
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t b = own(from, B, begins), end = own(to, B, begins); b < end; ++b) {
      const T *d = d_pooled + b * k, *e_i = e + begins[b] * k;
      T* __restrict d_e_i = d_e + begins[b] * k;
      for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i, e_i += k, d_e_i += k) {
        T dot = 0;
        for (int64_t j = 0; j < k; ++j) dot += d[j] * e_i[j];
        d_w[i] = dot;
#pragma GCC ivdep
        for (int64_t j = 0; j < k; ++j) d_e_i[j] += w[i] * d[j];
      }
    }
  });
}

// Dice alone, for x (N, H) of any width: the moments, the curve of this step, the values, and the gradient of x and the
// sums of `differentiate`.
void dice_moments(int64_t N, int64_t H, const T* x, const T* centre, const T* valid, T* sums, int64_t threads) {
  std::vector<Sums> found(threads, Sums(2 * H));
  share(N, threads, [&](int64_t thread, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i += CHUNK) {
      const int64_t n = std::min(CHUNK, to - i);
      moments(n, H, x + i * H, centre, valid ? valid + i : nullptr, found[thread].few.data());
      found[thread].fold(n);
    }
  });
  for (const auto& part : found) part.into(sums);
}

// From the sums over all ranks of `moments` around the running mean, and of rows, total (2 H + 1,), and from alpha (W,):
// the curve (3, W) of a Dice of H <= W units. The running statistics (H,) move.
void dice_settle(int64_t H, int64_t W, double eps, double momentum, const T* total, const T* alpha, T* mean,
                 T* variance, T* curve, int64_t) {
  const double rows = std::max(1.0, double(total[2 * H]));
  std::copy_n(alpha, W, curve);
  std::fill_n(curve + W, 2 * W, T(0));
  for (int64_t j = 0; j < H; ++j) {
    const double distance = total[j] / rows, spread = total[H + j] / rows - distance * distance;
    const double found = spread < 0 ? 0 : spread, scale = 1 / std::sqrt(found + eps);
    curve[W + j] = scale;
    curve[2 * W + j] = -(mean[j] + distance) * scale;
    mean[j] += momentum * distance;
    if (rows > 1) variance[j] += momentum * (found * rows / (rows - 1) - variance[j]);  // one row has no variance
  }
}

// The gradient of such a total, (2 H + 1,), from sums (3, W) over this rank's rows of d_alpha, d_z and d_z x: as mean and
// variance are functions of every valid row, z = scale x + shift is too.
void dice_total(int64_t H, int64_t W, const T* sums, const T* curve, const T* total, T* gradient, int64_t) {
  const double rows = std::max(1.0, double(total[2 * H]));
  for (int64_t j = 0; j < H; ++j) {
    const double scale = curve[W + j], shift = curve[2 * W + j], d_shift = sums[W + j];
    const double by_z = scale * sums[2 * W + j] + shift * d_shift;  // the sum of d_z z
    const double d_variance = -by_z * scale * scale / 2, distance = total[j] / rows;
    gradient[j] = (-scale * d_shift - 2 * distance * d_variance) / rows;
    gradient[H + j] = d_variance / rows;
  }
  gradient[2 * H] = 0;
}

// The correction (2, W) that follows from the gradient (2 H + 1,) of `moments` around a centre.
void dice_correction(int64_t H, int64_t W, const T* gradient, const T* centre, T* correction, int64_t) {
  std::fill_n(correction, 2 * W, T(0));
  for (int64_t j = 0; j < H; ++j) {
    const double slope = 2.0 * gradient[H + j];
    correction[j] = gradient[j] - slope * centre[j];
    correction[W + j] = slope;
  }
}

void dice_forward(int64_t N, int64_t H, const T* x, const T* curve, T* y, int64_t threads) {
  share(N, threads,
        [&](int64_t, int64_t from, int64_t to) { activate(to - from, H, x + from * H, curve, y + from * H); });
}

void dice_backward(int64_t N, int64_t H, const T* x, const T* d_y, const T* curve, T* d_x, T* sums, int64_t threads) {
  std::vector<Sums> found(threads, Sums(3 * H));
  share(N, threads, [&](int64_t thread, int64_t from, int64_t to) {
    Array y(CHUNK * H);
    for (int64_t i = from; i < to; i += CHUNK) {
      const int64_t n = std::min(CHUNK, to - i);
      differentiate(n, H, x + i * H, d_y + i * H, curve, y.data(), d_x + i * H, found[thread].few.data());
      found[thread].fold(n);
    }
  });
  for (const auto& part : found) part.into(sums);
}

// Complete d_x in place.
void dice_complete(int64_t N, int64_t H, T* d_x, const T* x, const T* correction, const T* valid, int64_t threads) {
  share(N, threads, [&](int64_t, int64_t from, int64_t to) {
    complete(to - from, H, d_x + from * H, x + from * H, correction, valid ? valid + from : nullptr, d_x + from * H);
  });
}

}  // extern "C"
