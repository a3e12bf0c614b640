// Vectors of QM_WIDTH floats in the compiler's own vector extension (GCC >= 9, Clang >= 12), so that one source serves
// AVX-512, AVX2, NEON and plain scalar hardware. Each translation unit sets QM_WIDTH and QM_ISA (a namespace name) and
// is compiled with the flags of its instruction set; everything here has internal linkage, so no code compiled for a
// newer CPU can be picked by the linker for an older one.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace QM_ISA {
namespace {

constexpr int W = QM_WIDTH;
typedef float vf __attribute__((vector_size(4 * QM_WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * QM_WIDTH)));

#define QM_INLINE inline __attribute__((always_inline))

QM_INLINE vf splat(float s) { return s - vf{}; }
QM_INLINE vi splat_int(int32_t s) { return s - vi{}; }

QM_INLINE vf load(const float* p) {
#if defined(__AVX512DQ__) && QM_WIDTH == 16
  // in halves: a load over the border of two cache lines holds up Zen 4 for some 20 cycles, and rows of 8 n floats put
  // every second whole load there
  return (vf)_mm512_maskz_insertf32x8(0xffff, _mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(p + 8), 1);
#else
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
#endif
}

QM_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// The first n lanes; the others are zero.
QM_INLINE vf load(const float* p, int n) {
#if defined(__AVX512F__) && QM_WIDTH == 16
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#elif defined(__AVX512VL__) && QM_WIDTH == 8
  return (vf)_mm256_maskz_loadu_ps((__mmask8)((1u << n) - 1u), p);
#else
  vf v = {};
  for (int i = 0; i < n; i++) v[i] = p[i];
  return v;
#endif
}

QM_INLINE void store(float* p, vf v, int n) {
#if defined(__AVX512F__) && QM_WIDTH == 16
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#elif defined(__AVX512VL__) && QM_WIDTH == 8
  _mm256_mask_storeu_ps(p, (__mmask8)((1u << n) - 1u), (__m256)v);
#else
  for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

// Both keep a NaN in v: compares with it are false, and x86's max and min give their second operand.
QM_INLINE vf at_least(vf v, vf bound) {
#if defined(__AVX512F__) && QM_WIDTH == 16
  return (vf)_mm512_maskz_max_ps(0xffff, (__m512)bound, (__m512)v);
#elif defined(__AVX2__) && QM_WIDTH == 8
  return (vf)_mm256_max_ps((__m256)bound, (__m256)v);
#else
  return v < bound ? bound : v;
#endif
}

QM_INLINE vf at_most(vf v, vf bound) {
#if defined(__AVX512F__) && QM_WIDTH == 16
  return (vf)_mm512_maskz_min_ps(0xffff, (__m512)bound, (__m512)v);
#elif defined(__AVX2__) && QM_WIDTH == 8
  return (vf)_mm256_min_ps((__m256)bound, (__m256)v);
#else
  return v > bound ? bound : v;
#endif
}

// Nearest integer, ties to even, for |v| < 2^22.
QM_INLINE vf nearest(vf v) {
  const vf magic = splat(12582912.f);
  return (v + magic) - magic;
}

QM_INLINE vf absolute(vf v) { return (vf)((vi)v & splat_int(0x7fffffff)); }

template <int kLanes>
struct Lanes {
  typedef float type __attribute__((vector_size(4 * kLanes)));
};

// Sum of the lanes by halves: always the same order.
template <int kLanes>
QM_INLINE float sum_lanes(typename Lanes<kLanes>::type v) {
  if constexpr (kLanes == 2) {
    return v[0] + v[1];
  } else {
    typename Lanes<kLanes / 2>::type halves[2];
    std::memcpy(halves, &v, sizeof v);
    return sum_lanes<kLanes / 2>(halves[0] + halves[1]);
  }
}

QM_INLINE float sum(vf v) { return sum_lanes<W>(v); }

// Lanes a0 b0 a1 b1 ... of the first (kFrom = 0) or the second (kFrom = W / 2) halves of a and b.
template <int kFrom, int... kLane>
QM_INLINE vf interleave(vf a, vf b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kFrom + kLane / 2 + kLane % 2 * W)...);
#else
  return __builtin_shuffle(a, b, vi{(kFrom + kLane / 2 + kLane % 2 * W)...});
#endif
}

// Transposes W rows of W lanes.
QM_INLINE void transpose(vf* rows) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
#pragma GCC unroll 4
  for (int step = 1; step < W; step *= 2) {
    vf next[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; i++) {
      next[2 * i] = interleave<0>(rows[i], rows[i + W / 2], lanes);
      next[2 * i + 1] = interleave<W / 2>(rows[i], rows[i + W / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) rows[i] = next[i];
  }
}

// Splits t into an integer k and f in [-1/2, 1/2] with t = k + f, and gives 2^k; t in [-126, 127.5].
QM_INLINE vf split_exponent(vf t, vf* f) {
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer that sits in the low mantissa bits
  const vf shifted = t + magic;
  *f = t - (shifted - magic);
  return (vf)(((vi)shifted << 23) + splat_int(0x3f800000));
}

// Splits t into an integer k and f in [-1/2, 1/2] with t = k + f, and gives 2^k x; |t| finite, no larger than 127 upwards.
QM_INLINE vf scaled_split(vf x, vf t, vf* f) {
#if defined(__AVX512DQ__) && QM_WIDTH == 16
  const __mmask16 all = 0xffff;  // the unmasked forms read an undefined register, which GCC 12 warns about
  const vf whole = (vf)_mm512_maskz_roundscale_ps(all, (__m512)t, 0);
  *f = t - whole;
  return (vf)_mm512_maskz_scalef_ps(all, (__m512)x, (__m512)whole);
#elif defined(__AVX512VL__) && defined(__AVX512DQ__) && QM_WIDTH == 8
  const __mmask8 all = 0xff;
  const vf whole = (vf)_mm256_maskz_roundscale_ps(all, (__m256)t, 0);
  *f = t - whole;
  return (vf)_mm256_maskz_scalef_ps(all, (__m256)x, (__m256)whole);
#else
  return split_exponent(at_most(at_least(t, splat(-126.f)), splat(127.f)), f) * x;
#endif
}

// (2^f - 1) for f in [-1/2, 1/2], minimax: 9.3e-8 of 2^f, and exact at f = 0.
QM_INLINE vf exp2m1_poly(vf f) {
  vf q = splat(0.0013407259f);
  q = q * f + 0.0096718753f;
  q = q * f + 0.055503085f;
  q = q * f + 0.24022235f;
  q = q * f + 0.69314724f;
  return q * f;
}

// 2^t - 1 with full relative precision near t = 0; t finite, at most 127; NaN stays NaN.
QM_INLINE vf exp2m1(vf t) {
  vf f;
  const vf scale = scaled_split(splat(1.f), t, &f);
  return exp2m1_poly(f) * scale + (scale - 1.f);
}

// 2^t h, as precise as h + (2^t - 1) h with exp2m1 and two operations shorter; t as there.
QM_INLINE vf decayed(vf h, vf t) {
  vf f;
  const vf scaled = scaled_split(h, t, &f);
  return exp2m1_poly(f) * scaled + scaled;
}

// 2^t for t <= 0, relative error 1.5e-7 (below 2^-126 it may be 2^-126); NaN stays NaN.
QM_INLINE vf exp2_negative(vf t) {
#if defined(__AVX512DQ__) && QM_WIDTH == 16
  const __mmask16 all = 0xffff;
  const vf f = (vf)_mm512_maskz_reduce_ps(all, (__m512)t, 0);
  return (vf)_mm512_maskz_scalef_ps(all, (__m512)(exp2m1_poly(f) + 1.f), (__m512)(t - f));
#else
  vf f;
  const vf scale = split_exponent(at_least(t, splat(-126.f)), &f);
  return exp2m1_poly(f) * scale + scale;
#endif
}

// e^-|v|, relative error 1e-7 (zero below the normal range); NaN stays NaN.
QM_INLINE vf exp_minus_abs(vf v) {
  const vf t = at_least(-absolute(v), splat(-87.f));
  vf f;
  const vf scale = split_exponent(t * 1.44269504f, &f);
  // the fraction again, from t itself: the product above has lost digits where |t| is large
  const vf whole = t * 1.44269504f - f;
  const vf r = ((t - whole * 0.693359375f) + whole * 2.12194440e-4f) * 1.44269504f;
  vf q = splat(0.00015403512f);
  q = q * r + 0.0013390735f;
  q = q * r + 0.009618238f;
  q = q * r + 0.055503573f;
  q = q * r + 0.24022649f;
  q = q * r + 0.6931472f;
  const vf e = (q * r) * scale + scale;
  return absolute(v) > 87.f ? splat(0.f) : e;
}

// softplus(v) = max(v, 0) + log1p(e^-|v|) and its derivative, the logistic function.
QM_INLINE vf softplus(vf v, vf* slope) {
  const vf e = exp_minus_abs(v);
  const vf z = e / (e + 2.f);  // log1p(e) = 2 artanh(z)
  const vf u = z * z;
  vf p = splat(0.28178507f);
  p = p * u + 0.2796056f;
  p = p * u + 0.40024912f;
  p = p * u + 0.66666317f;
  p = p * u + 2.f;
  *slope = (v < 0.f ? e : splat(1.f)) / (e + 1.f);
  return at_least(v, splat(0.f)) + z * p;
}

}  // namespace
}  // namespace QM_ISA
