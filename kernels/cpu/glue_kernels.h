// One pass over blocks of rows: each block goes through a buffer in the first-level cache, step by step.
#pragma once

#include "activations.h"
#include "glue.h"
#include "quant_kernels.h"

namespace QM_ISA {
namespace {

typedef float vhf __attribute__((vector_size(2 * QM_WIDTH)));
typedef double vh __attribute__((vector_size(4 * QM_WIDTH)));
constexpr int kHalf = QM_WIDTH / 2;

// The first n lanes as bytes.
QM_INLINE void store_bytes(uint8_t* p, vi v, int n, bool full) {
#if defined(__AVX512F__) && QM_WIDTH == 16
  _mm512_mask_cvtepi32_storeu_epi8(p, full ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1u), (__m512i)v);
#else
#if defined(__AVX2__) && QM_WIDTH == 8
  const __m256i w = (__m256i)v;
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  const __m128i bytes = _mm_packus_epi16(words, words);
  std::memcpy(p, &bytes, full ? 8 : n);
#else
  uint8_t bytes[W];
  for (int l = 0; l < W; l++) bytes[l] = (uint8_t)v[l];
  std::memcpy(p, bytes, full ? W : n);
#endif
#endif
}

// The first n lanes of v, and `rest` in the others.
QM_INLINE vf first_lanes(vf v, int n, vf rest) {
  vi lane;
  for (int l = 0; l < W; l++) lane[l] = l;
  return lane < splat_int(n) ? v : rest;
}

// round(clamp((v + shift) / step)) + zero, all integers as they are stored.
struct Quantizer {
  vf step, shift, low, high;
  vi zero;

  Quantizer(const float* grid, int64_t z)
      : step(splat(grid[0])), shift(splat(grid[1])), low(splat(grid[2])), high(splat(grid[3])),
        zero(splat_int((int32_t)z - 0x4b400000)) {}

  QM_INLINE vi operator()(vf v) const {
    const vf code = at_most(at_least((v + shift) / step, low), high);
    return (vi)(code + splat(12582912.f)) + zero;  // the integer sits in the low bits of the mantissa
  }
};

QM_INLINE vh first_half(vf v) {
#if defined(__AVX512DQ__) && QM_WIDTH == 16
  return (vh)_mm512_maskz_cvtps_pd(0xff, _mm512_castps512_ps256((__m512)v));
#elif defined(__AVX2__) && QM_WIDTH == 8
  return (vh)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
#else
  vhf half;
  std::memcpy(&half, &v, sizeof half);
  return __builtin_convertvector(half, vh);
#endif
}

QM_INLINE vh second_half(vf v) {
#if defined(__AVX512DQ__) && QM_WIDTH == 16
  return (vh)_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1));
#elif defined(__AVX2__) && QM_WIDTH == 8
  return (vh)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
  vhf halves[2];
  std::memcpy(halves, &v, sizeof v);
  return __builtin_convertvector(halves[1], vh);
#endif
}

struct MomentSums {
  vh sum[2] = {}, squares[2] = {};
  vf low = splat(__builtin_inff()), high = splat(-__builtin_inff());

  QM_INLINE void add(vf v, int lanes, bool full) {
    v = limited(v);
    vf extreme = v;
    if (!full) extreme = first_lanes(v, lanes, splat(v[0])), v = first_lanes(v, lanes, vf{});
    const vh a = first_half(v), b = second_half(v);
    sum[0] += a, sum[1] += b;
    squares[0] += a * a, squares[1] += b * b;
    low = extreme < low ? extreme : low;
    high = extreme > high ? extreme : high;
  }

  void finish(double count, ExactMoments* m) const {
    *m = {count, 0, 0, low[0], high[0]};
    for (int l = 0; l < kHalf; l++) m->sum += sum[0][l] + sum[1][l], m->squares += squares[0][l] + squares[1][l];
    for (int l = 1; l < W; l++) {
      m->low = low[l] < m->low ? low[l] : m->low;
      m->high = high[l] > m->high ? high[l] : m->high;
    }
  }
};

// A block of rows: in the buffer each starts at a multiple of a vector, so that all steps but the first and the last work
// on whole vectors.
struct Block {
  int64_t rows, columns, pitch;

  Block(int64_t r, int64_t c) : rows(r), columns(c), pitch((c + W - 1) / W * W) {}

  // Calls f(place in the buffer, row, column, lanes, full) for all vectors.
  template <typename F>
  QM_INLINE void each(const F& f) const {
    for (int64_t r = 0; r < rows; r++)
      for_vectors(columns, [&](int64_t c, int lanes, bool full) { f(r * pitch + c, r, c, lanes, full); });
  }
};

void normalise(float* buffer, const Block& block, const float* weight, const float* bias, float epsilon) {
  const float share = 1.f / (float)block.columns;
  for (int64_t r = 0; r < block.rows; r++) {
    float* const row = buffer + r * block.pitch;
    vf total = {};
    for (int64_t c = 0; c < block.pitch; c += W) total += load(row + c);  // zero behind the last column
    const vf centre = splat(sum(total) * share);
    vf squares = {};
    for_vectors(block.columns, [&](int64_t c, int lanes, bool full) {
      const vf d = load(row + c) - centre, inside = full ? d : first_lanes(d, lanes, vf{});
      squares += inside * inside;
    });
    const vf inverse = splat(1.f / __builtin_sqrtf(sum(squares) * share + epsilon));
    for_vectors(block.columns, [&](int64_t c, int lanes, bool full) {
      const vf v = (load(row + c) - centre) * inverse * load_some(weight + c, lanes, full);
      store(row + c, bias ? v + load_some(bias + c, lanes, full) : v);
    });
  }
}

template <typename F>
QM_INLINE void change(float* buffer, const Block& block, const F& f) {
  for (int64_t i = 0; i < block.rows * block.pitch; i += W) store(buffer + i, f(load(buffer + i)));
}

void write(const float* buffer, const Block& block, float* to, int64_t stride) {
  block.each([&](int64_t i, int64_t r, int64_t c, int lanes, bool full) {
    store_some(to + r * stride + c, load(buffer + i), lanes, full);
  });
}

void write_codes(const float* buffer, const Block& block, uint8_t* to, int64_t stride, const float* grid, int64_t zero) {
  const Quantizer quantizer(grid, zero);
  block.each([&](int64_t i, int64_t r, int64_t c, int lanes, bool full) {
    store_bytes(to + r * stride + c, quantizer(load(buffer + i)), lanes, full);
  });
}

// A map from its row `first` on, or in a map without gaps from its value `first` on.
template <typename T>
T* from(T* map, int64_t first, int64_t stride) {
  return map ? map + first * stride : nullptr;
}

void glue_block(const GlueArgs& a, const Block& block, int64_t first, bool flat, float* buffer, MomentSums* moments) {
  const auto place = [&](auto* map, int64_t stride) { return from(map, first, flat ? 1 : stride); };
  const float *const x = place(a.x, a.x_stride), *const added = place(a.added, a.added_stride);
  block.each([&](int64_t i, int64_t r, int64_t c, int lanes, bool full) {
    vf v = load_some(x + r * a.x_stride + c, lanes, full);
    if (a.x_scale) v *= load_some(a.x_scale + c, lanes, full);
    if (added) {
      const vf more = load_some(added + r * a.added_stride + c, lanes, full);
      v += a.added_scale ? more * load_some(a.added_scale + c, lanes, full) : more;
    }
    store(buffer + i, v);
  });
  if (a.sum) write(buffer, block, place(a.sum, a.sum_stride), a.sum_stride);
  if (a.norm_weight) normalise(buffer, block, a.norm_weight, a.norm_bias, (float)a.epsilon);
  if (a.activation == kGlueSilu) change(buffer, block, [](vf v) { return silu(v); });
  if (a.activation == kGlueGelu) change(buffer, block, [](vf v) { return gelu(v); });
  if (a.activation == kGlueSigmoid) change(buffer, block, [](vf v) { return logistic(v); });
  if (a.other) {
    const float* const other = place(a.other, a.other_stride);
    block.each([&](int64_t i, int64_t r, int64_t c, int lanes, bool full) {
      const vf v = load(buffer + i), u = load_some(other + r * a.other_stride + c, lanes, full);
      store(buffer + i, a.combination == kGlueAdd ? v + u : v * (a.combination == kGlueMultiply ? u : silu(u)));
    });
  }
  if (a.out) write(buffer, block, place(a.out, a.out_stride), a.out_stride);
  if (a.codes) write_codes(buffer, block, place(a.codes, a.codes_stride), a.codes_stride, a.grid, a.zero);
  if (a.codes2) write_codes(buffer, block, place(a.codes2, a.codes2_stride), a.codes2_stride, a.grid2, a.zero2);
  if (moments) {
    MomentSums sums = *moments;
    block.each([&](int64_t i, int64_t, int64_t, int lanes, bool full) { sums.add(load(buffer + i), lanes, full); });
    *moments = sums;
  }
}

// Whether a pass does the same to every value, on maps without gaps.
bool is_flat(const GlueArgs& a) {
  const auto dense = [&](const void* map, int64_t stride) { return !map || stride == a.columns; };
  return !a.x_scale && !a.added_scale && !a.norm_weight && dense(a.x, a.x_stride) && dense(a.added, a.added_stride) &&
         dense(a.sum, a.sum_stride) && dense(a.other, a.other_stride) && dense(a.out, a.out_stride) &&
         dense(a.codes, a.codes_stride) && dense(a.codes2, a.codes2_stride);
}

// A pass that changes nothing: codes and statistics straight from the map.
void look(const GlueArgs& a, int64_t rows, int64_t columns, MomentSums* moments) {
  const float grid[4] = {1.f, 0.f, 0.f, 0.f};
  const Quantizer quantizer(a.codes ? a.grid : grid, a.zero);
  MomentSums sums = moments ? *moments : MomentSums();
  for (int64_t r = 0; r < rows; r++) {
    const float* const row = a.x + r * a.x_stride;
    if (a.codes)
      for_vectors(columns, [&](int64_t c, int lanes, bool full) {
        store_bytes(a.codes + r * a.codes_stride + c, quantizer(load_some(row + c, lanes, full)), lanes, full);
      });
    if (moments)
      for_vectors(columns, [&](int64_t c, int lanes, bool full) { sums.add(load_some(row + c, lanes, full), lanes, full); });
  }
  if (moments) *moments = sums;
}

void look_rows(const GlueArgs& given, int64_t first, int64_t last, bool flat, MomentSums* moments) {
  GlueArgs a = given;
  if (a.codes) a.codes += first * a.codes_stride;
  a.x += first * a.x_stride;
  flat ? look(a, 1, (last - first) * a.columns, moments) : look(a, last - first, a.columns, moments);
}

void glue_rows(const GlueArgs& a, int64_t first, int64_t last, ExactMoments* moments) {
  alignas(64) float buffer[kGlueBuffer + W];
  MomentSums sums;
  if (!a.x_scale && !a.added && !a.sum && !a.norm_weight && !a.activation && !a.other && !a.out && !a.codes2) {
    look_rows(a, first, last, is_flat(a), moments ? &sums : nullptr);
  } else if (is_flat(a)) {
    const int64_t end = last * a.columns;
    for (int64_t i = first * a.columns; i < end; i += kGlueBuffer)
      glue_block(a, Block(1, end - i < kGlueBuffer ? end - i : kGlueBuffer), i, true, buffer, moments ? &sums : nullptr);
  } else {
    const int64_t pitch = Block(1, a.columns).pitch, step = kGlueBuffer / pitch < 16 ? kGlueBuffer / pitch + !(kGlueBuffer / pitch) : 16;
    for (int64_t r = first; r < last; r += step)
      glue_block(a, Block(last - r < step ? last - r : step, a.columns), r, false, buffer, moments ? &sums : nullptr);
  }
  if (moments) sums.finish((double)(last - first) * (double)a.columns, moments);
}

// Weights of the channels of one direction as floats, in which sums of products of codes are exact.
constexpr int64_t kDeltaWeights = 16384;

struct DeltaTables {
  alignas(64) float weight[kDeltaWeights];
  alignas(64) float scale[kDeltaWeights / kMaxRank], factor[kDeltaWeights / kMaxRank], constant[kDeltaWeights / kMaxRank];
  int64_t width;  // channels between two rows of `weight`
  float ones;

  // Channels [first, first + n) of direction k.
  void fill(const DeltaArgs& a, int64_t k, int64_t first, int64_t n) {
    const float step = a.dt_grid[0], shift = a.dt_grid[1];
    width = (n + W - 1) / W * W;
    for (int64_t d = 0; d < width; d++) {
      const bool inside = d < n;
      const int64_t at = k * a.channels + first + (inside ? d : 0);
      for (int64_t r = 0; r < a.rank; r++) weight[r * width + d] = inside ? (float)a.weight[at * a.rank + r] : 0.f;
      scale[d] = step * a.scale[at];
      factor[d] = a.factor ? a.factor[at] : 0.f;
      constant[d] = (a.bias ? a.bias[at] : 0.f) - (a.sums ? shift * a.sums[at] : 0.f);
    }
    ones = a.factor ? step * a.ones[k] : 0.f;
  }
};

// kRank: 0 for any. What is done with the values is fixed when compiled, or sums would not stay in registers.
template <int kRank, bool kOut, bool kCodes, bool kMoments>
void delta_direction(const DeltaArgs& a, const DeltaTables& t, int64_t k, int64_t d0, int64_t n, int64_t first, int64_t last,
                     const Quantizer& q, MomentSums* moments) {
  const int64_t R = kRank ? kRank : a.rank, width = t.width;
  const Quantizer quantizer = q;
  vf low = moments->low, high = moments->high;
  for (int64_t m = first; m < last; m++) {
    vf row[kRank ? kRank : kMaxRank];
    float total = 0.f;
    const uint8_t* const dt = a.dt + m * a.dt_stride + k * R;
    for (int64_t r = 0; r < R; r++) {
      const float code = (float)((int)dt[r] - (int)a.dt_zero);
      total += code;
      row[r] = splat(code);
    }
    const int64_t to = (m * a.directions + k) * a.channels + d0;
    const vf less = splat(total * t.ones);
    for_vectors(n, [&](int64_t d, int lanes, bool full) {
      vf v = load(t.weight + d) * row[0];
#pragma GCC unroll 16
      for (int64_t r = 1; r < R; r++) v += load(t.weight + r * width + d) * row[r];
      v = v * load(t.scale + d) + (load(t.constant + d) - less * load(t.factor + d));
      if (kOut) store_some(a.out + to + d, v, lanes, full);
      if (kCodes) store_bytes(a.codes + to + d, quantizer(v), lanes, full);
      if (kMoments) {
        const vf inside = full ? v : first_lanes(v, lanes, splat(v[0]));
        low = inside < low ? inside : low;
        high = inside > high ? inside : high;
      }
    });
  }
  moments->low = low, moments->high = high;
}

template <int kRank>
void delta_ranked(const DeltaArgs& a, const DeltaTables& t, int64_t k, int64_t d0, int64_t n, int64_t first, int64_t last,
                  const Quantizer& quantizer, bool measured, MomentSums* sums) {
  auto* run = delta_direction<kRank, true, true, true>;
  if (!a.out && a.codes) run = measured ? delta_direction<kRank, false, true, true> : delta_direction<kRank, false, true, false>;
  if (!a.out && !a.codes) run = delta_direction<kRank, false, false, true>;
  if (a.out && !a.codes) run = delta_direction<kRank, true, false, true>;
  run(a, t, k, d0, n, first, last, quantizer, sums);
}

// Sums of products of the codes of dt, from which sums and sums of squares of delta follow: delta is linear in the codes.
// Exact: kDeltaRows products of bytes are below 2^24.
struct DeltaProducts {
  alignas(64) float sums[kDeltaCodes + W], products[kMaxRank][kDeltaCodes + W];  // [distance of the second code][code]

  void add(const DeltaArgs& a, int64_t first, int64_t last) {
    const int64_t R = a.rank, n = a.directions * R;
    alignas(64) float row[kDeltaCodes + kMaxRank + 2 * W] = {};
    std::memset(sums, 0, sizeof sums);
    for (int64_t r = 0; r < R; r++) std::memset(products[r], 0, (n + W) * sizeof(float));
    for (int64_t m = first; m < last; m++) {
      const uint8_t* const dt = a.dt + m * a.dt_stride;
      for (int64_t i = 0; i < n; i++) row[i] = (float)((int)dt[i] - (int)a.dt_zero);
      for (int64_t i = 0; i < n; i += W) {
        const vf v = load(row + i);
        store(sums + i, load(sums + i) + v);
        for (int64_t r = 0; r < R; r++) store(products[r] + i, load(products[r] + i) + v * load(row + i + r));
      }
    }
  }

  // Adds sum and sum of squares of delta over `count` rows of direction k, channels [d0, d0 + n).
  void finish(const DeltaArgs& a, const DeltaTables& t, int64_t k, int64_t n, double count, double* sum, double* squares) const {
    const int64_t R = a.rank;
    for (int64_t d = 0; d < n; d++) {
      double w[kMaxRank], linear = 0, square = 0;
      const double constant = t.constant[d];
      for (int64_t r = 0; r < R; r++) {
        w[r] = (double)t.scale[d] * t.weight[r * t.width + d] - (double)t.ones * t.factor[d];
        linear += w[r] * sums[k * R + r];
      }
      for (int64_t i = 0; i < R; i++) {
        double along = 0;
        for (int64_t j = i; j < R; j++) along += w[j] * products[j - i][k * R + i] * (j > i ? 2 : 1);
        square += w[i] * along;
      }
      *sum += linear + count * constant;
      *squares += square + 2 * constant * linear + count * constant * constant;
    }
  }
};

void delta_rows(const DeltaArgs& a, int64_t first, int64_t last, ExactMoments* moments) {
  DeltaTables tables;
  DeltaProducts products;
  double sum = 0, squares = 0;
  if (moments) products.add(a, first, last);
  const int64_t D = a.channels, most = kDeltaWeights / kMaxRank;
  const float grid[4] = {1.f, 0.f, 0.f, 0.f};
  const Quantizer quantizer(a.codes ? a.grid : grid, a.zero);
  MomentSums sums;
  auto* run = a.rank == 4 ? delta_ranked<4> : a.rank == 12 ? delta_ranked<12> : delta_ranked<0>;
  for (int64_t k = 0; k < a.directions; k++)
    for (int64_t d0 = 0; d0 < D; d0 += most) {
      const int64_t n = D - d0 < most ? D - d0 : most;
      tables.fill(a, k, d0, n);
      run(a, tables, k, d0, n, first, last, quantizer, moments != nullptr, &sums);
      if (moments) products.finish(a, tables, k, n, (double)(last - first), &sum, &squares);
    }
  if (!moments) return;
  sums.finish((double)(last - first) * (double)(a.directions * D), moments);
  moments->sum = sum, moments->squares = squares;
}

}  // namespace
}  // namespace QM_ISA
