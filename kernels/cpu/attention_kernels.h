// Window attention with a relative-position bias: what forward (attention_forward.h) and backward share, and the backward. One vector holds QM_WIDTH neighbouring queries;
// the loop runs over the keys, so that logits never leave the cache and no lane is idle for small heads. The backward
// pass computes the logits once more.
#pragma once

#include <cstdlib>

#include "attention.h"
#include "rounding.h"

namespace QM_ISA {
namespace {

constexpr int kMaxDim = (int)kMaxAttentionDim;
constexpr float kToLog2 = 1.44269504f;

// Memory of one task, cut into float arrays.
struct Workspace {
  float* next;
  void* memory;

  explicit Workspace(int64_t floats) : memory(std::aligned_alloc(64, (floats * sizeof(float) + 127) / 64 * 64)) {
    next = (float*)memory;
  }
  ~Workspace() { std::free(memory); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  float* take(int64_t n) { return (next += n) - n; }
};

// Where the tokens of one window of one image are.
struct Window {
  const int64_t* order;
  const int32_t* regions;
  int64_t row;  // of the first token of the image in (B * L)
  const float* qkv;
  float* norms;

  Window(const AttentionArgs& a, int64_t index, int64_t head) {
    const int64_t image = index / a.windows, window = index % a.windows;
    order = a.order + window * a.tokens;
    regions = a.regions ? a.regions + window * a.tokens : nullptr;
    row = image * a.windows * a.tokens;
    qkv = a.qkv + image * a.image_stride + head * a.dim;
    norms = a.norms ? a.norms + (index * a.heads + head) * 2 * a.tokens : nullptr;
  }
};

// out[token][dim] = channels of the tokens, or out[dim][token], times a factor.
template <bool kTransposed>
void gather_tokens(const float* map, int64_t stride, const int64_t* order, int64_t T, int d, float factor, float* out) {
  for (int64_t t = 0; t < T; t++) {
    const float* from = map + order[t] * stride;
    for (int c = 0; c < d; c++) out[kTransposed ? c * T + t : t * d + c] = from[c] * factor;
  }
}

void scatter_tokens(const float* in, const int64_t* order, int64_t T, int d, float factor, float* map, int64_t stride) {
  for (int64_t t = 0; t < T; t++) {
    float* to = map + order[t] * stride;
    for (int c = 0; c < d; c++) to[c] = in[c * T + t] * factor;
  }
}

// Calls visit(place, entry of the table) for all pairs of tokens. Maps over pairs are stored as [query / W][key][query % W]:
// the order in which the kernels walk them.
template <typename Visit>
QM_INLINE void for_pairs(const AttentionArgs& a, const Visit& visit) {
  const int64_t T = a.tokens;
  for (int64_t i = 0; i < T; i += W)
    for (int64_t j = 0; j < T; j += 16)
      for (int64_t query = 0; query < W; query++)
        for (int64_t key = j; key < j + 16; key++) visit(i * T + key * W + query, a.index[(i + query) * T + key]);
}

// The entries of the head times log2(e).
void head_column(const AttentionArgs& a, int64_t head, float* column) {
  for (int64_t r = 0; r < a.entries; r++) column[r] = a.table[r * a.heads + head] * kToLog2;
}

// The bias of all pairs times log2(e); column is scratch for the entries of the head.
void gather_bias(const AttentionArgs& a, int64_t head, float* column, float* bias) {
  head_column(a, head, column);
  for_pairs(a, [&](int64_t place, int64_t entry) { bias[place] = column[entry]; });
}

// Logit (times log2(e)) of key j for a vector of queries.
template <int kDim>
QM_INLINE vf logit(const vf* q, const float* key, int d, vf bias, const int32_t* regions, vi region, int64_t j, vf apart) {
  vf s = bias;
#pragma GCC unroll 16
  for (int c = 0; c < (kDim ? kDim : d); c++) s += q[c] * key[c];
  if (regions) s += region != splat_int(regions[j]) ? apart : vf{};
  return s;
}

QM_INLINE vi load_int(const int32_t* p) {
  vi v = {};
  if (p) std::memcpy(&v, p, sizeof v);
  return v;
}

// Adds rows[i]^T x block to sums[dim][key]: block holds W keys times W queries.
template <int kDim>
QM_INLINE void add_products(const float* block, const float* rows, int d, int64_t T, float* sums) {
  vf by_query[W];
  for (int j = 0; j < W; j++) by_query[j] = load(block + j * W);
  transpose(by_query);
  vf total[kDim ? kDim : kMaxDim];
  for (int c = 0; c < d; c++) total[c] = load(sums + c * T);
  for (int i = 0; i < W; i++) {
#pragma GCC unroll 16
    for (int c = 0; c < d; c++) total[c] += by_query[i] * rows[i * d + c];
  }
  for (int c = 0; c < d; c++) store(sums + c * T, total[c]);
}

// 2^t for t <= 0, and 0 where float32 has no number that small: such a value may lie exactly on a bound.
QM_INLINE vf probability(vf t) {
  const vf p = exp2_negative(t);
  return t < -149.5f ? vf{} : p;
}

// kRounded: there is a grid, whose gradients are added to dgrid.
template <int kDim, bool kRounded>
bool attention_backward_sized(const AttentionArgs& a, int64_t group, int64_t head) {
  const int d = kDim ? kDim : (int)a.dim;
  const int64_t T = a.tokens, width = a.heads * a.dim;
  Workspace work(2 * T * T + T * (9 * d + (kRounded ? 3 : 2) * W + 1) + a.entries);
  if (!work.memory) return false;
  float *bias = work.take(T * T), *dbias = work.take(T * T);
  float *queries = work.take(T * d), *query_rows = work.take(T * d), *keys = work.take(T * d), *values = work.take(T * d);
  float *grads = work.take(T * d), *grad_rows = work.take(T * d), *dq = work.take(T * d);
  float *dk = work.take(T * d), *dv = work.take(T * d);
  float *probabilities = work.take(T * W), *flows = work.take(T * W), *shares = work.take(T);
  float* const exact = work.take(kRounded ? T * W : 0);  // probabilities before they are rounded
  const Rounding grid(kRounded ? a.grid : kNoGrid);
  double dgrid[4] = {};
  gather_bias(a, head, work.take(a.entries), bias);
  std::memset(dbias, 0, T * T * sizeof(float));
  const vf apart = splat(a.masked * kToLog2);

  for (int64_t index = window_begin(a, group); index < window_begin(a, group + 1); index++) {
    const Window w(a, index, head);
    const float* dout = a.dout + w.row * width + head * d;
    const float* out = kRounded ? nullptr : a.out + w.row * width + head * d;
    gather_tokens<true>(w.qkv, a.token_stride, w.order, T, d, a.scale * kToLog2, queries);
    gather_tokens<false>(w.qkv, a.token_stride, w.order, T, d, 1, query_rows);
    gather_tokens<false>(w.qkv + width, a.token_stride, w.order, T, d, 1, keys);
    gather_tokens<false>(w.qkv + 2 * width, a.token_stride, w.order, T, d, 1, values);
    gather_tokens<true>(dout, width, w.order, T, d, 1, grads);
    gather_tokens<false>(dout, width, w.order, T, d, 1, grad_rows);
    for (int64_t t = 0; t < T && !kRounded; t++) {  // sum over keys of probability times its gradient
      float share = 0;
      for (int c = 0; c < d; c++) share += grad_rows[t * d + c] * out[w.order[t] * width + c];
      shares[t] = share;
    }
    std::memset(dk, 0, T * d * sizeof(float));
    std::memset(dv, 0, T * d * sizeof(float));
    for (int64_t i = 0; i < T; i += W) {
      vf q[kDim ? kDim : kMaxDim], g[kDim ? kDim : kMaxDim];
      for (int c = 0; c < d; c++) q[c] = load(queries + c * T + i), g[c] = load(grads + c * T + i);
      const vi region = load_int(w.regions ? w.regions + i : nullptr);
      const vf most = load(w.norms + i), inverse = load(w.norms + T + i);
      vf share = kRounded ? vf{} : load(shares + i);
      RoundingSums sums_of_grid = {};
      for (int64_t j = 0; j < T; j++) {
        const vf s = logit<kDim>(q, keys + j * d, d, load(bias + i * T + j * W), w.regions, region, j, apart);
        vf dp = kRounded ? vf{} : -share;
#pragma GCC unroll 16
        for (int c = 0; c < d; c++) dp += g[c] * values[j * d + c];
        if (kRounded) {
          const vf p = probability(s - most) * inverse;
          vf seen;
          dp = sums_of_grid.add(grid, dp, p, &seen);
          share += p * dp;
          store(exact + j * W, p);
          store(probabilities + j * W, seen);
          store(flows + j * W, dp);
          continue;
        }
        const vf p = exp2_negative(s - most) * inverse, flow = p * dp;
        store(probabilities + j * W, p);
        store(flows + j * W, flow);
        store(dbias + i * T + j * W, load(dbias + i * T + j * W) + flow);
      }
      for (int64_t j = 0; j < T && kRounded; j++) {  // their share is known now
        const vf flow = load(exact + j * W) * (load(flows + j * W) - share);
        store(flows + j * W, flow);
        store(dbias + i * T + j * W, load(dbias + i * T + j * W) + flow);
      }
      if (kRounded) sums_of_grid.flush(dgrid);
      vf sums[kDim ? kDim : kMaxDim];
      for (int c = 0; c < d; c++) sums[c] = vf{};
      for (int64_t j = 0; j < T; j++) {
        const vf flow = load(flows + j * W);
#pragma GCC unroll 16
        for (int c = 0; c < d; c++) sums[c] += flow * keys[j * d + c];
      }
      for (int c = 0; c < d; c++) store(dq + c * T + i, sums[c]);
      for (int64_t j = 0; j < T; j += W) {
        add_products<kDim>(probabilities + j * W, grad_rows + i * d, d, T, dv + j);
        add_products<kDim>(flows + j * W, query_rows + i * d, d, T, dk + j);
      }
    }
    float* dqkv = a.dqkv + w.row * 3 * width + head * d;
    scatter_tokens(dq, w.order, T, d, a.scale, dqkv, 3 * width);
    scatter_tokens(dk, w.order, T, d, a.scale, dqkv + width, 3 * width);
    scatter_tokens(dv, w.order, T, d, 1, dqkv + 2 * width, 3 * width);
  }
  float* dtable = a.dtable + (group * a.heads + head) * a.entries;
  std::memset(dtable, 0, a.entries * sizeof(float));
  for_pairs(a, [&](int64_t place, int64_t entry) { dtable[entry] += dbias[place]; });
  if (kRounded) std::memcpy(a.dgrid + (group * a.heads + head) * 4, dgrid, sizeof dgrid);
  return true;
}

// 12 channels per head: the official light networks.
template <bool kRounded>
bool attention_backward_any(const AttentionArgs& a, int64_t group, int64_t head) {
  return a.dim == 12 ? attention_backward_sized<12, kRounded>(a, group, head)
                     : attention_backward_sized<0, kRounded>(a, group, head);
}

bool attention_backward(const AttentionArgs& a, int64_t group, int64_t head) {
  return a.grid ? attention_backward_any<true>(a, group, head) : attention_backward_any<false>(a, group, head);
}

}  // namespace
}  // namespace QM_ISA
