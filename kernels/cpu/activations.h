// SiLU, GELU and the logistic function on vectors.
#pragma once

#include "simd.h"

namespace QM_ISA {
namespace {

// 1 / (1 + e^-v).
QM_INLINE vf logistic(vf v) {
  const vf e = exp_minus_abs(v);
  return (v < 0.f ? e : splat(1.f)) / (e + 1.f);
}

QM_INLINE vf silu(vf v) { return v * logistic(v); }

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
