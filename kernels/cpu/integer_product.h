// Products of two activations, as in attention: the right operand is packed on the fly.
#pragma once

#include "integer_kernels.h"

namespace QM_ISA {
namespace {

// Codes q of the right operand, transposed: out[column][term], `depth` bytes apart, what fills up a row is zero.
void right_codes(const IntegerProductArgs& p, int64_t offset, int64_t depth, uint8_t* row, float* values, uint8_t* out) {
  const CodeGrid grid(p.b.grid, p.b.zero);
  const bool by_column = p.b_row == 1;  // the terms of a column lie side by side
  const int64_t outer = by_column ? p.columns : p.terms, inner = by_column ? p.terms : p.columns;
  const int64_t step = by_column ? p.b_column : p.b_row, stride = by_column ? p.b_row : p.b_column;
  std::memset(out, 0, p.columns * depth);
  for (int64_t o = 0; o < outer; o++) {
    const int64_t from = offset + o * step;
    if (p.b.kind == kFloatRows) {
      const float* x = (const float*)p.b.data + from;
      if (stride != 1) {
        for (int64_t i = 0; i < inner; i++) values[i] = x[i * stride];
        x = values;
      }
      quantize_row(x, inner, grid, row);
    } else {
      const uint8_t* x = (const uint8_t*)p.b.data + from;
      for (int64_t i = 0; i < inner; i++) row[i] = x[i * stride];
    }
    const uint8_t zero = p.b.kind == kSignedRows ? 0 : (uint8_t)p.b.zero;
    for (int64_t i = 0; i < inner; i++)
      out[by_column ? o * depth + i : i * depth + o] = (uint8_t)(row[i] - zero);
  }
}

// One product of matrices.
bool multiply(const IntegerProductArgs& p, int64_t i0, int64_t i1) {
  const int64_t depth = padded(p.terms, 4), panels = padded(p.columns, kPanel) / kPanel, lanes = panels * kPanel;
  const int64_t longest = p.terms > p.columns ? p.terms : p.columns, sums = kMostRows * kMostPanels * kPanel;
  Scratch memory(2 * Scratch::size<uint8_t>(lanes * depth) + Scratch::size<uint8_t>(longest) +
                 Scratch::size<float>(longest) + Scratch::size<int32_t>(lanes) + 3 * Scratch::size<float>(lanes + 2 * W) +
                 Scratch::size<uint8_t>(kChunk * depth) + Scratch::size<int32_t>(sums) + Scratch::size<float>(kChunk));
  if (!memory.memory) return false;
  uint8_t *const columns = memory.take<uint8_t>(lanes * depth), *const packed = memory.take<uint8_t>(lanes * depth);
  uint8_t* const row = memory.take<uint8_t>(longest);
  float* const values = memory.take<float>(longest);
  int32_t* const start = memory.take<int32_t>(lanes);
  float* terms[3];
  for (float*& t : terms) {
    t = memory.take<float>(lanes + 2 * W);
    std::memset(t, 0, (lanes + 2 * W) * sizeof(float));
  }
  uint8_t* const codes = memory.take<uint8_t>(kChunk * depth);
  int32_t* const tile = memory.take<int32_t>(sums);
  float* const totals = memory.take<float>(kChunk);

  right_codes(p, i0 * p.b_strides[0] + i1 * p.b_strides[1], depth, row, values, columns);
  const float step_a = p.a.grid[0], shift_a = p.a.grid[1], step_b = p.b.grid[0], shift_b = p.b.grid[1];
  int32_t largest = 1;  // sum of the magnitudes of two neighbouring codes
  std::memset(packed, 0, lanes * depth);
  std::memset(start, 0, lanes * sizeof(int32_t));
  for (int64_t n = 0; n < p.columns; n++) {
    const int8_t* q = (const int8_t*)columns + n * depth;
    int32_t total = 0;
    for (int64_t k = 0; k < depth; k += 2) {
      const int32_t pair = std::abs((int)q[k]) + std::abs((int)q[k + 1]);
      largest = pair > largest ? pair : largest;
      total += q[k] + q[k + 1];
    }
    for (int64_t k = 0; k < depth; k += 4)
      std::memcpy(packed + n / kPanel * depth * kPanel + k * kPanel + n % kPanel * 4, q + k, 4);
    start[n] = -(int32_t)p.a.zero * total;
    terms[0][n] = step_a * step_b;
    terms[1][n] = shift_b;
    terms[2][n] = -(shift_a * ((float)total * step_b - shift_b * (float)p.terms));
  }
  const int64_t pair = largest * (2 * p.a.zero < 255 ? 2 * p.a.zero : 255);
  IntegerFinish f = {};
  f.out = p.out + i0 * p.out_strides[0] + i1 * p.out_strides[1], f.out_stride = p.out_stride;
  const Ending ending(f);
  const CodeGrid grid(p.a.grid, p.a.zero);
  std::memset(codes, 0, kChunk * depth);
  for (int64_t first = 0; first < p.rows; first += kChunk) {
    const int64_t n = p.rows - first < kChunk ? p.rows - first : kChunk;
    for (int64_t r = 0; r < n; r++) {
      uint8_t* const u = codes + r * depth;
      take_row(p.a, grid, i0 * p.a_strides[0] + i1 * p.a_strides[1] + (first + r) * p.a.stride, p.terms, u);
      if (!p.shifted) continue;
      int32_t total = 0;
      for (int64_t k = 0; k < p.terms; k++) total += u[k];
      totals[r] = (float)(total - (int32_t)(p.a.zero * p.terms)) * step_a;
    }
    const uint8_t* from = codes;
    for (int64_t end = panels; end > 0;) {
      const int v = panels_at_once(end), rows = tile_rows(v);
      end -= v;
      const int64_t channel = end * kPanel, width = v * kPanel;
      for (int64_t r = 0; r < n; r += rows) {
        int64_t at[kMostRows];
        for (int i = 0; i < rows; i++) at[i] = (r + i < n ? r + i : n - 1) * depth;
        tile_sums({&from, 1, depth / 4, at, (const int8_t*)packed + end * depth * kPanel, depth * kPanel, start + channel,
                   tile, pair, p.a.zero},
                  v);
        const Terms t = {terms[0] + channel, p.shifted ? terms[1] + channel : nullptr,
                         p.shifted ? terms[2] + channel : nullptr, nullptr, nullptr};
        const int64_t count = p.columns - channel < width ? p.columns - channel : width;
        ending.template operator()<false>(t, tile, totals + r, width, n - r < rows ? n - r : rows, first + r, channel, count);
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace QM_ISA
