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

#include "vectors.h"

namespace {

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

// The first row from b on that shares no events with the row before: where one thread's rows end and another's begin.
inline int64_t own(int64_t b, int64_t B, const int64_t* begins) {
  while (0 < b && b < B && begins[b] == begins[b - 1]) ++b;
  return b;
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
