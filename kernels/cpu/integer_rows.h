// Rows of codes from rows of anything, and what follows a sum: factors, bias, activation, residual, the next grid.
#pragma once

#include "activations.h"
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

// Keeps a product apart from the sum that it goes into: both are rounded, as in PyTorch.
QM_INLINE vf rounded(vf v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// The low bytes of the lanes.
QM_INLINE vb low_bytes(vi v) {
#if defined(__AVX2__) && QM_WIDTH == 8
  const __m256i each = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                        0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i halves = _mm256_shuffle_epi8((__m256i)v, each);
  const __m128i joined = _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  vb low;
  std::memcpy(&low, &joined, sizeof low);
  return low;
#else
  return __builtin_convertvector(v, vb);
#endif
}

QM_INLINE void store_bytes(uint8_t* p, vb v) { std::memcpy(p, &v, sizeof v); }

// The first n bytes.
QM_INLINE void store_bytes(uint8_t* p, vb v, int n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__) && QM_WIDTH == 16
  _mm_mask_storeu_epi8(p, (__mmask16)((1u << n) - 1u), (__m128i)v);
#else
  for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

// A grid for one vector: code = clamp(round((x + shift) / step), low, high), halves to the even code. Rounding after the
// clamp or before it, and a clamp of x + shift to low * step .. high * step, give the same code: division and rounding are
// monotonic. NaN gives code 0.
struct CodeGrid {
  vf step, shift, low, high;
  int32_t added;  // to a code as it is stored

  CodeGrid(const float* grid, int64_t zero, bool plain = false) : added(plain ? 0 : (int32_t)zero) {
    step = splat(grid[0]), shift = splat(grid[1]);
    // whatever a grid says: 16-bit sums of products are proved for codes from -zero to zero
    const float most = zero < 128 ? (float)zero : 127.f;
    low = splat(grid[2] > -(float)zero ? grid[2] : -(float)zero);
    high = splat(grid[3] < most ? grid[3] : most);
  }

  QM_INLINE vb codes(vf x) const {
    vf t = (x + shift) / step;
    t = t == t ? t : splat(0.f);
    t = at_most(at_least(t, low), high);
    const vi bits = (vi)(t + 12582912.f);  // 1.5 * 2^23: the code is in the low bits
    return low_bytes(bits + splat_int(added));
  }
};

void quantize_row(const float* x, int64_t n, const CodeGrid& grid, uint8_t* codes) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store_bytes(codes + i, grid.codes(load(x + i)));
  if (i < n) store_bytes(codes + i, grid.codes(load(x + i, (int)(n - i))), (int)(n - i));
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

// Factors and terms of some channels, padded to whole vectors of any width.
struct Terms {
  const float* scale;        // step * scale
  const float* factor;       // of the product of the channel of ones; null without it
  const float* first;        // added one after the other; null for 0
  const float* second;
  const float* const* last;  // added behind them, for each row its own; null for 0
};

constexpr float kNoGrid[4] = {1, 0, 0, 0};

// What one task writes.
struct Ending {
  const IntegerFinish& f;
  const CodeGrid grids[kCodeOutputs];
  const bool curved, coded;  // there is an activation or a residual; there are codes

  explicit Ending(const IntegerFinish& f)
      : f(f),
        grids{{f.codes[0] ? f.codes_grid[0] : kNoGrid, f.codes_zero[0]},
              {f.codes[1] ? f.codes_grid[1] : kNoGrid, f.codes_zero[1]}},
        curved(f.activation || f.residual),
        coded(f.codes[0] || f.codes[1]) {}

  // Has what n channels of some rows are written to, and what is added to them, on its way: the hardware does not guess it,
  // as the rows are written in pieces.
  QM_INLINE void fetch(int64_t row, int64_t rows, int64_t channel, int64_t n) const {
    const auto ask = [&](const float* map, int64_t stride) {
      for (int64_t r = 0; map && r < rows; r++) {
        const float* const p = map + (row + r) * stride + channel;
        for (int64_t c = 0; c < n; c += 16) __builtin_prefetch(p + c);
        __builtin_prefetch(p + n - 1);
      }
    };
    ask(f.out, f.out_stride);
    if (f.residual != f.out) ask(f.residual, f.residual_stride);
  }

  QM_INLINE vf curve(vf y, int64_t row, int64_t channel, int left) const {
    if (f.activation == kSilu) y = silu(y);
    if (f.activation == kGelu) y = gelu(y);
    if (!f.residual) return y;
    const float* r = f.residual + row * f.residual_stride + channel;
    vf v = left == W ? load(r) : load(r, left);
    if (f.residual_scale) {
      const float* s = f.residual_scale;
      v = rounded(v * (f.residual_scales == 1 ? splat(*s) : left == W ? load(s + channel) : load(s + channel, left)));
    }
    return y + v;
  }

  // `ones` of row r: one value, or (kApart) one for each channel.
  template <bool kApart, bool kCurved, bool kCoded>
  void finish(const Terms& t, const int32_t* sums, const float* ones, int64_t pitch, int64_t rows, int64_t row,
              int64_t channel, int64_t n) const {
    for (int64_t i = 0; i < n; i += W) {
      const int left = n - i < W ? (int)(n - i) : W;
      const int64_t at = channel + i;
      const vf scale = load(t.scale + i), factor = t.factor ? load(t.factor + i) : vf{};
      const vf first = t.first ? load(t.first + i) : vf{}, second = t.second ? load(t.second + i) : vf{};
      for (int64_t r = 0; r < rows; r++) {
        vf y = rounded(to_float(load_int32(sums + r * pitch + i)) * scale);
        if (t.factor) y = y - rounded((kApart ? load(ones + r * pitch + i) : splat(ones[r])) * factor);
        y = y + first + second;
        if (t.last) y = y + load(t.last[r] + i);
        if (kCurved) y = curve(y, row + r, at, left);
        if (!kCoded || f.out) {
          float* const out = f.out + (row + r) * f.out_stride + at;
          if (left == W) store(out, y);
          else store(out, y, left);
        }
        if (!kCoded) continue;
        for (int k = 0; k < kCodeOutputs; k++) {
          if (!f.codes[k]) continue;
          uint8_t* const codes = f.codes[k] + (row + r) * f.codes_stride[k] + at;
          if (left == W) store_bytes(codes, grids[k].codes(y));
          else store_bytes(codes, grids[k].codes(y), left);
        }
      }
    }
  }

  // The results of n channels, from `channel` on, of `rows` rows of sums, `pitch` elements apart; they are output rows
  // row, row + 1, ... `ones` is the product of the channel of ones, see finish().
  template <bool kApart>
  void operator()(const Terms& t, const int32_t* sums, const float* ones, int64_t pitch, int64_t rows, int64_t row,
                  int64_t channel, int64_t n) const {
    if (curved && coded) finish<kApart, true, true>(t, sums, ones, pitch, rows, row, channel, n);
    else if (curved) finish<kApart, true, false>(t, sums, ones, pitch, rows, row, channel, n);
    else if (coded) finish<kApart, false, true>(t, sums, ones, pitch, rows, row, channel, n);
    else finish<kApart, false, false>(t, sums, ones, pitch, rows, row, channel, n);
  }
};

}  // namespace
}  // namespace QM_ISA
