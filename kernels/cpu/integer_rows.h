// Rows of codes from rows of anything, and what follows a sum: factors, bias, activation, residual, the next grid.
#pragma once

#include "integer.h"
#include "simd.h"

namespace QM_ISA {
namespace {

typedef uint8_t vb __attribute__((vector_size(QM_WIDTH)));

QM_INLINE vf to_float(vi v) { return __builtin_convertvector(v, vf); }

QM_INLINE vi load_int32(const int32_t* p) {
  vi v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// A grid for one vector: code = clamp(round((x + shift) / step), low, high), halves to the even code. Rounding after the
// clamp or before it, and a clamp of x + shift to low * step .. high * step, give the same code: division and rounding are
// monotonic. NaN gives code 0.
struct CodeGrid {
  vf step, shift, low, high;
  int32_t added;  // to a code as it is stored

  CodeGrid(const float* grid, int64_t zero, bool plain = false) : added(plain ? 0 : (int32_t)zero) {
    step = splat(grid[0]), shift = splat(grid[1]);
    // whatever a grid says, a code fits its byte
    low = splat(grid[2] > -(float)zero ? grid[2] : -(float)zero);
    high = splat(grid[3] < 255.f - (float)zero ? grid[3] : 255.f - (float)zero);
  }

  QM_INLINE vb codes(vf x) const {
    vf t = (x + shift) / step;
    t = t == t ? t : splat(0.f);
    t = at_most(at_least(t, low), high);
    const vi bits = (vi)(t + 12582912.f);  // 1.5 * 2^23: the code is in the low bits
    return __builtin_convertvector(bits + splat_int(added), vb);
  }
};

void quantize_row(const float* x, int64_t n, const CodeGrid& grid, uint8_t* codes) {
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const vb c = grid.codes(load(x + i));
    std::memcpy(codes + i, &c, W);
  }
  if (i < n) {
    const vb c = grid.codes(load(x + i, (int)(n - i)));
    for (int j = 0; i + j < n; j++) codes[i + j] = c[j];
  }
}

// Codes u of n channels of a row.
QM_INLINE void take_row(const IntegerRows& x, const CodeGrid& grid, int64_t offset, int64_t n, uint8_t* codes) {
  if (x.kind == kFloatRows) {
    quantize_row((const float*)x.data + offset, n, grid, codes);
  } else if (x.kind == kCodeRows) {
    std::memcpy(codes, (const uint8_t*)x.data + offset, n);
  } else {
    const uint8_t* q = (const uint8_t*)x.data + offset;
    for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)(q[i] + x.zero);
  }
}

// v times the logistic function of v.
QM_INLINE vf silu(vf v) {
  const vf e = exp_minus_abs(v);
  return v * ((v < 0.f ? e : splat(1.f)) / (e + 1.f));
}

// The error function, |error| < 2e-7: a rational minimax approximation on [-4, 4].
QM_INLINE vf error_function(vf v) {
  v = at_most(at_least(v, splat(-4.f)), splat(4.f));
  const vf u = v * v;
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
  return v * p / q;
}

QM_INLINE vf gelu(vf v) { return v * 0.5f * (error_function(v * 0.70710678f) + 1.f); }

// Factors and terms of one group of channels, padded to whole vectors of any width.
struct Terms {
  const float* scale;   // step * scale
  const float* factor;  // null without the channel of ones
  const float* first;   // added one after the other; null for 0
  const float* second;
};

constexpr float kNoGrid[4] = {1, 0, 0, 0};

// The results of one row of sums: n channels from `channel` on of output row `row`. `ones` is the product of the channel
// of ones, for each channel of its own (depthwise) or one for all.
template <bool kApart>
QM_INLINE void finish_row(const IntegerFinish& f, const Terms& t, const int32_t* sums, const float* ones, int64_t row,
                          int64_t channel, int64_t n) {
  const CodeGrid grids[kCodeOutputs] = {{f.codes[0] ? f.codes_grid[0] : kNoGrid, f.codes_zero[0]},
                                        {f.codes[1] ? f.codes_grid[1] : kNoGrid, f.codes_zero[1]}};
  for (int64_t i = 0; i < n; i += W) {
    const int left = n - i < W ? (int)(n - i) : W;
    vf y = to_float(load_int32(sums + i)) * load(t.scale + i);
    if (t.factor) y = y - (kApart ? load(ones + i) : splat(*ones)) * load(t.factor + i);
    if (t.first) y = y + load(t.first + i);
    if (t.second) y = y + load(t.second + i);
    if (f.activation == kSilu) y = silu(y);
    if (f.activation == kGelu) y = gelu(y);
    const int64_t at = channel + i;
    if (f.residual) {
      const float* r = f.residual + row * f.residual_stride + at;
      vf v = left == W ? load(r) : load(r, left);
      if (f.residual_scale) {
        const float* s = f.residual_scale;
        v = v * (f.residual_scales == 1 ? splat(*s) : left == W ? load(s + at) : load(s + at, left));
      }
      y = y + v;
    }
    if (f.out) {
      float* out = f.out + row * f.out_stride + at;
      if (left == W) store(out, y);
      else store(out, y, left);
    }
    for (int k = 0; k < kCodeOutputs; k++) {
      if (!f.codes[k]) continue;
      uint8_t* codes = f.codes[k] + row * f.codes_stride[k] + at;
      const vb c = grids[k].codes(y);
      if (left == W) std::memcpy(codes, &c, W);
      else
        for (int j = 0; j < left; j++) codes[j] = c[j];
    }
  }
}

}  // namespace
}  // namespace QM_ISA
