// What lies around the events of a row in training, on a CPU: linear layers on normalised input, attention among events,
// and the filter by frequency. modules/layers/sequence.py and frequency.py compute the same.
//
// As in fused.cpp a pass takes CHUNK events, or a row, at a time; arrays are contiguous. Rows are never padded: offsets
// (B + 1,) say where the events of each begin.

#include <limits>

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

constexpr int64_t QUERIES = 64;  // that look at a time, a multiple of a vector's lanes

// Scores of keys [0, seen) by M queries, from the `first` on: those of keys behind a query become `to`.
inline void hide(int64_t first, int64_t seen, int64_t M, T to, T* scores) {
  for (int64_t j = first + 1; j < seen; ++j) std::fill_n(scores + j * M, j - first, to);
}

// scores (n, M) <- e^(scores - most), most (M,) and sums (M,) being the columns' largest and, then, their sums
inline void exponentials(int64_t n, int64_t M, T* __restrict scores, T* __restrict most, T* __restrict sums) {
  std::copy_n(scores, M, most);
  std::fill_n(sums, M, T(0));
  for (int64_t j = 1; j < n; ++j) {
    const T* s = scores + j * M;
#pragma GCC ivdep
    for (int64_t l = 0; l < M; ++l) most[l] = s[l] > most[l] ? s[l] : most[l];
  }
  for (int64_t j = 0; j < n; ++j) {
    T* __restrict s = scores + j * M;
#pragma GCC ivdep
    for (int64_t l = 0; l < M; ++l) {
      s[l] = exponential(s[l] - most[l]);
      sums[l] += s[l];
    }
  }
}

// p = e^(p - level) of scores p (n, M), and s = p (s - sum p s) of what their gradients come from, s (n, M). Keys from
// the `first` on are hidden from the queries before them.
inline void softmax_backward(int64_t first, int64_t n, int64_t M, const T* level, T* __restrict means, T* __restrict p,
                             T* __restrict s) {
  for (int64_t j = 0; j < n; ++j) {
#pragma GCC ivdep
    for (int64_t l = 0; l < M; ++l) p[j * M + l] = exponential(p[j * M + l] - level[l]);
  }
  hide(first, n, M, T(0), p);
  std::fill_n(means, M, T(0));
  for (int64_t j = 0; j < n; ++j) {
#pragma GCC ivdep
    for (int64_t l = 0; l < M; ++l) means[l] += p[j * M + l] * s[j * M + l];
  }
  for (int64_t j = 0; j < n; ++j) {
#pragma GCC ivdep
    for (int64_t l = 0; l < M; ++l) s[j * M + l] = p[j * M + l] * (s[j * M + l] - means[l]);
  }
}

// out (d,) = factor x
inline void put(int64_t d, T factor, const T* x, T* out) {
  int64_t c = 0;
  for (; c + LANES <= d; c += LANES) at(out + c) = factor * at(x + c);
  for (; c < d; ++c) out[c] = factor * x[c];
}

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
//
// A block of scores has a line for each key, and up to QUERIES across: so the largest of a query's scores, and their sum,
// are found for a vector of queries at a time, and no vector is summed across.
void attend_forward(int64_t B, int64_t heads, int64_t d, int64_t causal, const int64_t* asks, const int64_t* answers,
                    int64_t to_q, const T* q, int64_t to_k, const T* k, int64_t to_v, const T* v, T* out, T* lse,
                    int64_t threads) {
  const int64_t W = heads * d, D = room(d);
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    Array keys, values, asked, scores, made(QUERIES * D), most(QUERIES), sums(QUERIES);
    for (int64_t b = from; b < to; ++b) {
      const int64_t m = asks[b + 1] - asks[b], n = answers[b + 1] - answers[b];
      if (m == 0 || n == 0) continue;
      scores.resize(std::max<size_t>(scores.size(), n * QUERIES));
      for (int64_t h = 0; h < heads; ++h) {
        part_of(n, to_k, h * d, d, T(1), k + answers[b] * to_k, keys);
        part_of(n, to_v, h * d, d, T(1), v + answers[b] * to_v, values);
        for (int64_t i = 0; i < m; i += QUERIES) {
          const int64_t rows = std::min(QUERIES, m - i), M = room(rows), first = asks[b] + i;
          const int64_t seen = causal ? i + rows : n;
          turned_part_of(rows, to_q, h * d, d, T(1) / std::sqrt(T(d)), q + first * to_q, asked);
          multiply(seen, d, M, keys.data(), D, 1, asked.data(), scores.data());
          if (causal) hide(i, seen, M, std::numeric_limits<T>::lowest(), scores.data());
          exponentials(seen, M, scores.data(), most.data(), sums.data());
          if (causal) hide(i, seen, M, T(0), scores.data());
          multiply(rows, seen, D, scores.data(), 1, M, values.data(), made.data());
          for (int64_t r = 0; r < rows; ++r) {
            lse[(first + r) * heads + h] = most[r] + std::log(sums[r]);
            put(d, T(1) / sums[r], made.data() + r * D, out + (first + r) * W + h * d);
          }
        }
      }
    }
  });
}

// Back through it from d_out (M, W): d_q, d_k and d_v, zeros before.
void attend_backward(int64_t B, int64_t heads, int64_t d, int64_t causal, const int64_t* asks, const int64_t* answers,
                     int64_t to_q, const T* q, int64_t to_k, const T* k, int64_t to_v, const T* v, const T* lse,
                     const T* d_out, T* d_q, T* d_k, T* d_v, int64_t threads) {
  const int64_t W = heads * d, D = room(d);
  const T factor = T(1) / std::sqrt(T(d));
  share(B, threads, [&](int64_t, int64_t from, int64_t to) {
    Array keys, values, asked, given, turned, scores, slopes, of_keys, of_values;
    Array made(QUERIES * D), level(QUERIES), means(QUERIES);
    for (int64_t b = from; b < to; ++b) {
      const int64_t m = asks[b + 1] - asks[b], n = answers[b + 1] - answers[b];
      if (m == 0 || n == 0) continue;
      scores.resize(std::max<size_t>(scores.size(), n * QUERIES));
      slopes.resize(scores.size());
      for (int64_t h = 0; h < heads; ++h) {
        part_of(n, to_k, h * d, d, T(1), k + answers[b] * to_k, keys);
        part_of(n, to_v, h * d, d, T(1), v + answers[b] * to_v, values);
        of_keys.assign(n * D, T(0)), of_values.assign(n * D, T(0));
        for (int64_t i = 0; i < m; i += QUERIES) {
          const int64_t rows = std::min(QUERIES, m - i), M = room(rows), first = asks[b] + i;
          const int64_t seen = causal ? i + rows : n;
          const T *q_i = q + first * to_q, *d_out_i = d_out + first * W;
          turned_part_of(rows, to_q, h * d, d, factor, q_i, turned);
          multiply(seen, d, M, keys.data(), D, 1, turned.data(), scores.data());
          turned_part_of(rows, W, h * d, d, T(1), d_out_i, turned);
          multiply(seen, d, M, values.data(), D, 1, turned.data(), slopes.data());
          for (int64_t r = 0; r < rows; ++r) level[r] = lse[(first + r) * heads + h];
          softmax_backward(causal ? i : seen, seen, M, level.data(), means.data(), scores.data(), slopes.data());
          part_of(rows, to_q, h * d, d, factor, q_i, asked);
          part_of(rows, W, h * d, d, T(1), d_out_i, given);
          multiply_add(seen, rows, D, scores.data(), M, 1, given.data(), of_values.data());
          multiply_add(seen, rows, D, slopes.data(), M, 1, asked.data(), of_keys.data());
          multiply(rows, seen, D, slopes.data(), 1, M, keys.data(), made.data());
          for (int64_t r = 0; r < rows; ++r) put(d, factor, made.data() + r * D, d_q + (first + r) * W + h * d);
        }
        for (int64_t j = 0; j < n; ++j) {
          put(d, T(1), of_keys.data() + j * D, d_k + (answers[b] + j) * W + h * d);
          put(d, T(1), of_values.data() + j * D, d_v + (answers[b] + j) * W + h * d);
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
