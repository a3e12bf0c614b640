// Window attention, forward: two passes over the keys for one or two vectors of queries, which share what is broadcast.
#pragma once

#include "attention_kernels.h"
#include "rounding.h"

namespace QM_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kQueryVectors = 2;  // at once: 12 channels of each fit into 32 registers
#else
constexpr int kQueryVectors = 1;
#endif

// The bias of vectors of queries, times log2(e): a stretch of the head's column where the entries of W queries that follow
// each other do so as well, otherwise gathered before.
struct Biases {
  const float *column, *pairs;
  const int64_t* index;
  int64_t tokens;

  template <bool kLined>
  QM_INLINE vf of(int64_t query, int64_t key) const {
    return load(kLined ? column + index[query * tokens + key] : pairs + query * tokens + key * W);
  }
};

// Tokens of one window and head in float arrays; see transposed_tokens and gathered_rows.
struct Gathered {
  float *queries, *keys, *values;
};

// out[dim][token] = channels of the tokens times a factor.
template <int kDim>
void transposed_tokens(const float* map, int64_t stride, const int64_t* order, int64_t T, int d, float factor, float* out) {
  if constexpr (kDim > 0 && kDim <= W) {
    for (int64_t t = 0; t < T; t += W) {
      vf rows[W];
      for (int l = 0; l < W; l++) rows[l] = load(map + order[t + l] * stride, kDim);
      transpose(rows);
#pragma GCC unroll 16
      for (int c = 0; c < kDim; c++) store(out + c * T + t, rows[c] * factor);
    }
  } else {
    gather_tokens<true>(map, stride, order, T, d, factor, out);
  }
}

// out[token][dim] = channels of the tokens.
template <int kDim>
void gathered_rows(const float* map, int64_t stride, const int64_t* order, int64_t T, int d, float* out) {
  const size_t bytes = (kDim ? kDim : d) * sizeof(float);
  for (int64_t t = 0; t < T; t++) std::memcpy(out + t * (kDim ? kDim : d), map + order[t] * stride, bytes);
}

// What W queries give, o[dim], as rows of the map.
template <int kDim>
QM_INLINE void put_out(vf* o, int d, const int64_t* order, float* map, int64_t stride) {
  if constexpr (kDim > 0 && kDim <= W) {
    vf rows[W];
#pragma GCC unroll 16
    for (int c = 0; c < W; c++) rows[c] = c < kDim ? o[c] : vf{};
    transpose(rows);
    for (int l = 0; l < W; l++) store(map + order[l] * stride, rows[l], kDim);
  } else {
    for (int c = 0; c < d; c++)
      for (int l = 0; l < W; l++) map[order[l] * stride + c] = o[c][l];
  }
}

// Queries i to i + kVectors W.
template <int kDim, int kVectors, bool kLined, bool kRounded>
void attend(const AttentionArgs& a, const Window& w, const Gathered& from, const Biases& biases, float* logits, int64_t i,
            float* out) {
  constexpr int kChannels = kDim ? kDim : kMaxDim;
  const int d = kDim ? kDim : (int)a.dim;
  const int64_t T = a.tokens;
  const vf apart = splat(a.masked * kToLog2);
  vf most[kVectors], total[kVectors];
  {
    vf q[kVectors][kChannels];
    vi region[kVectors];
#pragma GCC unroll 2
    for (int b = 0; b < kVectors; b++) {
      for (int c = 0; c < d; c++) q[b][c] = load(from.queries + c * T + i + b * W);
      region[b] = load_int(w.regions ? w.regions + i + b * W : nullptr);
      most[b] = splat(-__builtin_inff()), total[b] = vf{};
    }
    for (int64_t j = 0; j < T; j++) {
      vf s[kVectors];
#pragma GCC unroll 2
      for (int b = 0; b < kVectors; b++) s[b] = biases.of<kLined>(i + b * W, j);
#pragma GCC unroll 16
      for (int c = 0; c < d; c++) {
        const vf key = splat(from.keys[j * d + c]);
#pragma GCC unroll 2
        for (int b = 0; b < kVectors; b++) s[b] += q[b][c] * key;
      }
#pragma GCC unroll 2
      for (int b = 0; b < kVectors; b++) {
        if (w.regions) s[b] += region[b] != splat_int(w.regions[j]) ? apart : vf{};
        most[b] = at_least(s[b], most[b]);
        store(logits + (j * kVectors + b) * W, s[b]);
      }
    }
  }
  vf o[kVectors][kChannels];
#pragma GCC unroll 2
  for (int b = 0; b < kVectors; b++)
    for (int c = 0; c < d; c++) o[b][c] = vf{};
  const Rounding grid(kRounded ? a.grid : kNoGrid);
  vf inverse[kVectors];
  if (kRounded) {  // what is rounded are the shares of the sum, which has to be there first
    for (int64_t j = 0; j < T; j++) {
#pragma GCC unroll 2
      for (int b = 0; b < kVectors; b++) {
        float* const place = logits + (j * kVectors + b) * W;
        const vf p = probability(load(place) - most[b]);
        total[b] += p;
        store(place, p);
      }
    }
    for (int b = 0; b < kVectors; b++) inverse[b] = 1.f / total[b];
  }
  for (int64_t j = 0; j < T; j++) {
    vf p[kVectors];
#pragma GCC unroll 2
    for (int b = 0; b < kVectors; b++) {
      const vf kept = load(logits + (j * kVectors + b) * W);
      if (kRounded) {
        p[b] = grid.rounded(kept * inverse[b]);
      } else {
        p[b] = exp2_negative(kept - most[b]);
        total[b] += p[b];
      }
    }
#pragma GCC unroll 16
    for (int c = 0; c < d; c++) {
      const vf value = splat(from.values[j * d + c]);
#pragma GCC unroll 2
      for (int b = 0; b < kVectors; b++) o[b][c] += p[b] * value;
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < kVectors; b++) {
    if (!kRounded) {
      inverse[b] = 1.f / total[b];
      for (int c = 0; c < d; c++) o[b][c] *= inverse[b];
    }
    put_out<kDim>(o[b], d, w.order + i + b * W, out, a.heads * a.dim);
    if (w.norms) {
      store(w.norms + i + b * W, most[b]);
      store(w.norms + T + i + b * W, inverse[b]);
    }
  }
}

template <int kDim, bool kLined, bool kRounded>
bool attention_forward_sized(const AttentionArgs& a, int64_t group, int64_t head) {
  constexpr int kVectors = kDim ? kQueryVectors : 1;
  const int d = kDim ? kDim : (int)a.dim;
  const int64_t T = a.tokens, width = a.heads * a.dim;
  Workspace work((kLined ? 0 : T * T) + T * (3 * d + kVectors * W) + a.entries);
  if (!work.memory) return false;
  float* const pairs = kLined ? nullptr : work.take(T * T);
  const Gathered from = {work.take(T * d), work.take(T * d), work.take(T * d)};
  float *const logits = work.take(T * kVectors * W), *const column = work.take(a.entries);
  if (kLined)
    head_column(a, head, column);
  else
    gather_bias(a, head, column, pairs);
  const Biases biases = {column, pairs, a.index, T};

  for (int64_t index = window_begin(a, group); index < window_begin(a, group + 1); index++) {
    const Window w(a, index, head);
    transposed_tokens<kDim>(w.qkv, a.token_stride, w.order, T, d, a.scale * kToLog2, from.queries);
    gathered_rows<kDim>(w.qkv + width, a.token_stride, w.order, T, d, from.keys);
    gathered_rows<kDim>(w.qkv + 2 * width, a.token_stride, w.order, T, d, from.values);
    float* const out = a.out + w.row * width + head * d;
    int64_t i = 0;
    for (; i + kVectors * W <= T; i += kVectors * W) attend<kDim, kVectors, kLined, kRounded>(a, w, from, biases, logits, i, out);
    for (; i < T; i += W) attend<kDim, 1, kLined, kRounded>(a, w, from, biases, logits, i, out);
  }
  return true;
}

// 12 channels per head: the official light networks.
template <bool kLined, bool kRounded>
bool attention_forward_any(const AttentionArgs& a, int64_t group, int64_t head) {
  return a.dim == 12 ? attention_forward_sized<12, kLined, kRounded>(a, group, head)
                     : attention_forward_sized<0, kLined, kRounded>(a, group, head);
}

bool attention_forward(const AttentionArgs& a, int64_t group, int64_t head, bool lined) {
  if (a.grid)
    return lined ? attention_forward_any<true, true>(a, group, head) : attention_forward_any<false, true>(a, group, head);
  return lined ? attention_forward_any<true, false>(a, group, head) : attention_forward_any<false, false>(a, group, head);
}

}  // namespace
}  // namespace QM_ISA
