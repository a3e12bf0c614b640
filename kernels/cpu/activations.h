// SiLU, GELU and the logistic function on vectors.
#pragma once

#include "simd.h"

namespace QM_ISA {
namespace {

// e^v for v clamped to [-87, 88], relative error below 2e-7; NaN stays NaN.
QM_INLINE vf exponential(vf v) {
  v = at_most(at_least(v, splat(-87.f)), splat(88.f));
  const vf t = v * 1.44269504f;
#if defined(__AVX512DQ__) && QM_WIDTH == 16
  const vf whole = (vf)_mm512_maskz_roundscale_ps(0xffff, (__m512)t, 0);
#else
  const vf magic = splat(12582912.f), shifted = t + magic, whole = shifted - magic;  // see split_exponent
#endif
  const vf r = (v - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
#if defined(__AVX512DQ__) && QM_WIDTH == 16
  return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)whole);
#else
  return p * (vf)(((vi)shifted << 23) + splat_int(0x3f800000));
#endif
}

// 1 / (1 + e^-v).
QM_INLINE vf logistic(vf v) { return 1.f / (exponential(-v) + 1.f); }

QM_INLINE vf silu(vf v) { return v / (exponential(-v) + 1.f); }

// erf(v), a rational function on [-4, 4]: absolute error below 4e-7 of 1 (1 beyond).
QM_INLINE vf error_function(vf v) {
  const vf x = at_most(at_least(v, splat(-4.f)), splat(4.f)), u = x * x;
  vf p = splat(-2.72614225801306e-10f);
  p = p * u + 2.77068142495902e-08f;
  p = p * u + -2.10102402082508e-06f;
  p = p * u + -5.69250639462346e-05f;
  p = p * u + -7.34990630326855e-04f;
  p = p * u + -2.95459980854025e-03f;
  p = p * u + -1.60960333262415e-02f;
  vf q = splat(-1.45660718464996e-05f);
  q = q * u + -2.13374055278905e-04f;
  q = q * u + -1.68282697438203e-03f;
  q = q * u + -7.37332916720468e-03f;
  q = q * u + -1.42647390514189e-02f;
  return x * p / q;
}

QM_INLINE vf gelu(vf v) { return v * 0.5f * (error_function(v * 0.70710678f) + 1.f); }

}  // namespace
}  // namespace QM_ISA
