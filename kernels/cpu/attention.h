// What window attention gets and gives. The Python side (qmambair_basicsr/ops/window_attention/native.py) mirrors this
// struct field by field; change both, and qm_abi() in api.cpp.
#pragma once

#include <cstdint>

struct AttentionArgs {
  int64_t batch, windows, tokens, heads, dim;  // windows per image, tokens per window (a multiple of 16), channels per head
  int64_t entries;                             // rows of the table
  int64_t groups;                              // groups of windows; each has its own share of dtable
  int64_t image_stride, token_stride;          // of qkv, in elements; q, k and v of a token follow each other
  int64_t threads;
  float scale, masked;      // factor on q.k, term of pairs in different regions
  const float* qkv;         // (B, L, 3, heads, dim), L = windows * tokens
  const float* table;       // (entries, heads)
  const int64_t* index;     // (tokens, tokens), rows of the table
  const int64_t* order;     // (windows, tokens), position in L of every token
  const int32_t* regions;   // (windows, tokens) or null
  float* out;               // (B, L, heads, dim)
  float* norms;             // (B, windows, heads, 2, tokens): largest logit times log2(e), inverse sum; null: not wanted
  const float* dout;        // (B, L, heads, dim)
  float* dqkv;              // (B, L, 3, heads, dim)
  float* dtable;            // (groups, heads, entries)
  const float* grid;        // of the probabilities, as ScanArgs::grid; null where they are not quantized
  double* dgrid;            // (groups, heads, 4): gradients of step, offset, lower and upper bound
};

// What the C interface returns.
enum AttentionStatus : int64_t {
  kAttentionDone = 0,
  kAttentionNoMemory = 1,
  kAttentionBadSize = 2,   // a size, stride or pointer that no input has
  kAttentionBadIndex = 3,  // an entry of index that is no row of the table
  kAttentionBadOrder = 4,  // order is no permutation of the positions
};

constexpr int64_t kMaxAttentionTokens = 1024, kMaxAttentionDim = 128;

struct AttentionKernels {
  // windows of group `group` in one head; lined: is_lined(args); false when memory ran out
  bool (*forward)(const AttentionArgs& args, int64_t group, int64_t head, bool lined);
  bool (*backward)(const AttentionArgs& args, int64_t group, int64_t head);
};

// Windows of group g, over all images: [window_begin(g), window_begin(g + 1)). Depends on the shape alone.
inline int64_t window_begin(const AttentionArgs& a, int64_t g) { return g * a.batch * a.windows / a.groups; }

// Whether the entries of 16 queries that follow each other, for one key, follow each other in the table: so it is where a
// row of a window has a multiple of 16 tokens.
inline bool is_lined(const AttentionArgs& a) {
  int64_t bent = 0;
  for (int64_t i = 0; i + 1 < a.tokens; i++)
    if ((i + 1) % 16)
      for (int64_t j = 0; j < a.tokens; j++) bent |= a.index[(i + 1) * a.tokens + j] - a.index[i * a.tokens + j] - 1;
  return !bent;
}
