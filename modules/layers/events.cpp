// What lies around the events of a row in training, on a CPU: linear layers on normalised input, attention among events,
// and the filter by frequency. modules/layers/sequence.py and frequency.py compute the same.
//
// As in fused.cpp a pass takes CHUNK events, or a row, at a time; arrays are contiguous. Rows are never padded: offsets
// (B + 1,) say where the events of each begin.

#include "vectors.h"

namespace {

// z (n, k) = (x - mean) / deviation of each row, and 1 / deviation (n,)
inline void standardise(int64_t n, int64_t k, T eps, const T* x, T* __restrict z, T* __restrict scale) {
  for (int64_t i = 0; i < n; ++i, x += k, z += k) {
    const T mean = over(k, [&](int64_t j) { return x[j]; }) / k;
    const T variance = over(k, [&](int64_t j) { return (x[j] - mean) * (x[j] - mean); }) / k;
    scale[i] = T(1) / std::sqrt(variance + eps);
#pragma GCC ivdep
    for (int64_t j = 0; j < k; ++j) z[j] = (x[j] - mean) * scale[i];
  }
}

// out (n, k) = z gamma + beta
inline void stretch(int64_t n, int64_t k, const T* z, const T* gamma, const T* beta, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i, z += k, out += k) {
#pragma GCC ivdep
    for (int64_t j = 0; j < k; ++j) out[j] = z[j] * gamma[j] + beta[j];
  }
}

// Cosines and sines of the `kept` lowest frequencies of n events, orthonormal: (n, 2 kept - 1). Each is the one before it
// turned by one step, in double.
inline void waves(int64_t n, int64_t kept, Array& out) {
  const int64_t m = 2 * kept - 1;
  out.resize(n * m);
  for (int64_t k = 0; k < kept; ++k) {
    const bool once = k == 0 || 2 * k == n;
    const double scale = std::sqrt((once ? 1.0 : 2.0) / n), angle = 2 * M_PI * k / n;
    const double cosine = std::cos(angle), sine = std::sin(angle);
    double x = scale, y = 0;
    for (int64_t t = 0; t < n; ++t) {
      out[t * m + k] = x;
      if (k > 0) out[t * m + kept + k - 1] = y;
      const double turned = x * cosine - y * sine;
      y = x * sine + y * cosine, x = turned;
    }
  }
}

// What a thread needs to filter rows: low (n, d) = Q Q' x, Q from `waves`, made anew when n or `kept` is another.
struct LowPass {
  Array columns, products, low;
  int64_t n = 0, kept = 0;
  const T* of(int64_t n_, int64_t kept_, int64_t d, const T* x) {
    if (n_ != n || kept_ != kept) waves(n = n_, kept = kept_, columns);
    const int64_t m = 2 * kept - 1;
    products.resize(m * d), low.resize(n * d);
    multiply(m, n, d, columns.data(), 1, m, x, products.data());
    multiply(n, m, d, columns.data(), m, 1, products.data(), low.data());
    return low.data();
  }
};

}  // namespace

extern "C" {

// out (N, H) = f(norm(x) W + bias) + beside for x (N, k) and W (k, H): norm is LayerNorm with gamma and beta, or nothing
// without them; f is relu, or nothing; bias and beside may be missing.
void layer_forward(int64_t N, int64_t k, int64_t H, int64_t relu, double eps, const T* x, const T* gamma, const T* beta,
                   const T* weight, const T* bias, const T* beside, T* out, int64_t threads) {
  share(N, threads, [&](int64_t, int64_t from, int64_t to) {
    Array normed(CHUNK * k), scale(CHUNK);
    for (int64_t i = from; i < to; i += CHUNK) {
      const int64_t n = std::min(CHUNK, to - i);
      const T* given = x + i * k;
      if (gamma) {
        standardise(n, k, eps, given, normed.data(), scale.data());
        stretch(n, k, normed.data(), gamma, beta, normed.data());
        given = normed.data();
      }
      T* made = out + i * H;
      multiply(n, k, H, given, k, 1, weight, made);
      for (int64_t r = 0; r < n; ++r, made += H) {
#pragma GCC ivdep
        for (int64_t j = 0; j < H; ++j) {
          T y = bias ? made[j] + bias[j] : made[j];
          y = relu && y < T(0) ? T(0) : y;
          made[j] = beside ? y + beside[(i + r) * H + j] : y;
        }
      }
    }
  });
}

// Back through it from d_out (N, H): d_x (N, k), and the gradients of W (k, H), bias (H,), gamma and beta (k,). weight_t
// is (H, K); `out` is read if there is a relu, without a `beside` then.
void layer_backward(int64_t N, int64_t k, int64_t K, int64_t H, int64_t relu, double eps, const T* x, const T* gamma,
                    const T* beta, const T* weight_t, const T* d_out, const T* out, T* d_x, T* d_weight, T* d_bias,
                    T* d_gamma, T* d_beta, int64_t threads) {
  std::vector<Sums> weights(threads, Sums(k * H)), biases(threads, Sums(H)), norms(threads, Sums(2 * k));
  share(N, threads, [&](int64_t thread, int64_t from, int64_t to) {
    Array through(CHUNK * H), z(CHUNK * k), normed(CHUNK * k), wide(CHUNK * K), scale(CHUNK);
    for (int64_t i = from; i < to; i += CHUNK) {
      const int64_t n = std::min(CHUNK, to - i);
      const T *d = d_out + i * H, *given = x + i * k;
      if (relu) {
        const T* made = out + i * H;
#pragma GCC ivdep
        for (int64_t j = 0; j < n * H; ++j) through[j] = made[j] > T(0) ? d[j] : T(0);
        d = through.data();
      }
      if (gamma) {
        standardise(n, k, eps, given, z.data(), scale.data());
        stretch(n, k, z.data(), gamma, beta, normed.data());
        given = normed.data();
      }
      multiply_add(k, n, H, given, 1, k, d, weights[thread].few.data());
      add_rows(n, H, d, biases[thread].few.data());
      multiply(n, H, K, d, H, 1, weight_t, wide.data());
      T *d_gamma_t = norms[thread].few.data(), *d_beta_t = d_gamma_t + k;
      for (int64_t r = 0; r < n; ++r) {
        T *__restrict g = wide.data() + r * K, *__restrict d_x_r = d_x + (i + r) * k;
        if (!gamma) {
          std::copy_n(g, k, d_x_r);
          continue;
        }
        const T* z_r = z.data() + r * k;
#pragma GCC ivdep
        for (int64_t j = 0; j < k; ++j) {
          d_gamma_t[j] += g[j] * z_r[j];
          d_beta_t[j] += g[j];
          g[j] *= gamma[j];
        }
        const T mean = over(k, [&](int64_t j) { return g[j]; }) / k;
        const T slope = over(k, [&](int64_t j) { return g[j] * z_r[j]; }) / k;
#pragma GCC ivdep
        for (int64_t j = 0; j < k; ++j) d_x_r[j] = scale[r] * (g[j] - mean - z_r[j] * slope);
      }
      weights[thread].fold(n), biases[thread].fold(n), norms[thread].fold(n);
    }
  });
  for (int64_t t = 0; t < threads; ++t) {
    weights[t].into(d_weight);
    biases[t].into(d_bias);
    for (int64_t j = 0; j < 2 * k; ++j) {  // gamma's sums, then beta's
      const T sum = norms[t].all.empty() ? norms[t].few[j] : static_cast<T>(norms[t].all[j] + norms[t].few[j]);
      if (gamma) (j < k ? d_gamma[j] : d_beta[j - k]) += sum;
    }
  }
}

// out (M, W) and lse (M, heads): for each row, W = heads d columns of q (M, W) look at those of k and v (N, W). `asks` and
// `answers` are the rows' offsets in M and in N. Events of q, k and v lie to_q, to_k and to_v numbers apart. Rows without
// keys are left as they are.
void attend_forward(int64_t B, int64_t heads, int64_t d, int64_t causal, const int64_t* asks, const int64_t* answers,
                    int64_t to_q, const T* q, int64_t to_k, const T* k, int64_t to_v, const T* v, T* out, T* lse,
                    int64_t threads) {
  const int64_t W = heads * d, D = room(d);
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    Array keys, values, asked, scores, made(CHUNK * D);
    for (int64_t b = from; b < to; ++b) {
      const int64_t m = asks[b + 1] - asks[b], n = answers[b + 1] - answers[b], N = room(n);
      if (m == 0 || n == 0) continue;
      scores.resize(std::max<size_t>(scores.size(), CHUNK * N));
      for (int64_t h = 0; h < heads; ++h) {
        turned_part_of(n, to_k, h * d, d, k + answers[b] * to_k, keys);
        part_of(n, to_v, h * d, d, T(1), v + answers[b] * to_v, values);
        for (int64_t i = 0; i < m; i += CHUNK) {
          const int64_t rows = std::min(CHUNK, m - i), first = asks[b] + i, seen = causal ? i + rows : n;
          part_of(rows, to_q, h * d, d, T(1) / std::sqrt(T(d)), q + first * to_q, asked);
          multiply(rows, d, N, asked.data(), D, 1, keys.data(), scores.data());
          T sums[CHUNK];
          for (int64_t r = 0; r < rows; ++r) {
            T* __restrict s = scores.data() + r * N;
            const int64_t own = causal ? i + r + 1 : n;
            const T most = largest(own, s);
            for (int64_t j = own; j < seen; ++j) s[j] = T(0);
#pragma GCC ivdep
            for (int64_t j = 0; j < own; ++j) s[j] = exponential(s[j] - most);
            sums[r] = over(own, [&](int64_t j) { return s[j]; });
            lse[(first + r) * heads + h] = most + std::log(sums[r]);
          }
          multiply(rows, seen, D, scores.data(), N, 1, values.data(), made.data());
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < d; ++c) out[(first + r) * W + h * d + c] = made[r * D + c] / sums[r];
          }
        }
      }
    }
  });
}

// Back through it from d_out (M, W): d_q, d_k and d_v, zeros before.
void attend_backward(int64_t B, int64_t heads, int64_t d, int64_t causal, const int64_t* asks, const int64_t* answers,
                     int64_t to_q, const T* q, int64_t to_k, const T* k, int64_t to_v, const T* v, const T* out,
                     const T* lse, const T* d_out, T* d_q, T* d_k, T* d_v, int64_t threads) {
  const int64_t W = heads * d, D = room(d);
  const T factor = T(1) / std::sqrt(T(d));
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    Array keys, turned_keys, turned_values, asked, given, scores, slopes, of_keys, of_values, made(CHUNK * D);
    for (int64_t b = from; b < to; ++b) {
      const int64_t m = asks[b + 1] - asks[b], n = answers[b + 1] - answers[b], N = room(n);
      if (m == 0 || n == 0) continue;
      scores.resize(std::max<size_t>(scores.size(), CHUNK * N));
      slopes.resize(scores.size());
      for (int64_t h = 0; h < heads; ++h) {
        const T* k_b = k + answers[b] * to_k;
        part_of(n, to_k, h * d, d, factor, k_b, keys);
        turned_part_of(n, to_k, h * d, d, k_b, turned_keys);
        turned_part_of(n, to_v, h * d, d, v + answers[b] * to_v, turned_values);
        of_keys.assign(n * D, T(0)), of_values.assign(n * D, T(0));
        for (int64_t i = 0; i < m; i += CHUNK) {
          const int64_t rows = std::min(CHUNK, m - i), first = asks[b] + i, seen = causal ? i + rows : n;
          part_of(rows, to_q, h * d, d, factor, q + first * to_q, asked);
          part_of(rows, W, h * d, d, T(1), d_out + first * W, given);
          multiply(rows, d, N, asked.data(), D, 1, turned_keys.data(), scores.data());
          multiply(rows, d, N, given.data(), D, 1, turned_values.data(), slopes.data());
          for (int64_t r = 0; r < rows; ++r) {
            T *__restrict p = scores.data() + r * N, *__restrict s = slopes.data() + r * N;
            const int64_t own = causal ? i + r + 1 : n;
            const T level = lse[(first + r) * heads + h], *o = out + (first + r) * W + h * d, *g = given.data() + r * D;
            const T mean = over(d, [&](int64_t c) { return o[c] * g[c]; });
            for (int64_t j = own; j < seen; ++j) p[j] = s[j] = T(0);
#pragma GCC ivdep
            for (int64_t j = 0; j < own; ++j) {
              p[j] = exponential(p[j] - level);
              s[j] = p[j] * (s[j] - mean);
            }
          }
          multiply_add(seen, rows, D, scores.data(), 1, N, given.data(), of_values.data());
          multiply_add(seen, rows, D, slopes.data(), 1, N, asked.data(), of_keys.data());
          multiply(rows, seen, D, slopes.data(), N, 1, keys.data(), made.data());
          for (int64_t r = 0; r < rows; ++r) std::copy_n(made.data() + r * D, d, d_q + (first + r) * W + h * d);
        }
        for (int64_t j = 0; j < n; ++j) {
          std::copy_n(of_keys.data() + j * D, d, d_k + (answers[b] + j) * W + h * d);
          std::copy_n(of_values.data() + j * D, d, d_v + (answers[b] + j) * W + h * d);
        }
      }
    }
  });
}

// out (N, d) = x + alpha_b low + beta_b (x - low) for the events x of every row b, gates (B, 2 d) being alpha and beta, and
// low the row's `kept` lowest frequencies; d is a multiple of 16.
void split_forward(int64_t B, int64_t d, const int64_t* offsets, const int64_t* kept, const T* x, const T* gates, T* out,
                   int64_t threads) {
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    LowPass filter;
    for (int64_t b = from; b < to; ++b) {
      const int64_t n = offsets[b + 1] - offsets[b];
      if (n == 0) continue;
      const T *x_i = x + offsets[b] * d, *alpha = gates + b * 2 * d, *beta = alpha + d;
      const T* low = filter.of(n, kept[b], d, x_i);
      T* __restrict out_i = out + offsets[b] * d;
      for (int64_t i = 0; i < n; ++i, x_i += d, low += d, out_i += d) {
#pragma GCC ivdep
        for (int64_t j = 0; j < d; ++j) out_i[j] = x_i[j] + alpha[j] * low[j] + beta[j] * (x_i[j] - low[j]);
      }
    }
  });
}

// Back through it from d_out (N, d): d_x (N, d) and d_gates (B, 2 d), zeros before.
void split_backward(int64_t B, int64_t d, const int64_t* offsets, const int64_t* kept, const T* x, const T* gates,
                    const T* d_out, T* d_x, T* d_gates, int64_t threads) {
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    LowPass filter;
    Array bent;
    for (int64_t b = from; b < to; ++b) {
      const int64_t n = offsets[b + 1] - offsets[b];
      if (n == 0) continue;
      const T *x_i = x + offsets[b] * d, *g = d_out + offsets[b] * d, *alpha = gates + b * 2 * d, *beta = alpha + d;
      T *__restrict d_alpha = d_gates + b * 2 * d, *__restrict d_beta = d_alpha + d;
      bent.resize(std::max<size_t>(bent.size(), n * d));
      const T* low = filter.of(n, kept[b], d, x_i);
      for (int64_t i = 0; i < n; ++i) {
#pragma GCC ivdep
        for (int64_t j = 0; j < d; ++j) {
          d_alpha[j] += g[i * d + j] * low[i * d + j];
          d_beta[j] += g[i * d + j] * (x_i[i * d + j] - low[i * d + j]);
          bent[i * d + j] = g[i * d + j] * (alpha[j] - beta[j]);
        }
      }
      low = filter.of(n, kept[b], d, bent.data());  // Q Q' is its own gradient
      T* __restrict d_x_i = d_x + offsets[b] * d;
      for (int64_t i = 0; i < n; ++i) {
#pragma GCC ivdep
        for (int64_t j = 0; j < d; ++j) d_x_i[i * d + j] = g[i * d + j] * (T(1) + beta[j]) + low[i * d + j];
      }
    }
  });
}

}  // extern "C"
