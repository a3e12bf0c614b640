// Linear layers, convolutions and batched products of codes for one instruction set; integer_tile.h does the sums.
#pragma once

#include <cstdlib>

#include "integer_rows.h"
#include "integer_tile.h"

namespace QM_ISA {
namespace {

constexpr int64_t kChunk = 48;  // rows whose codes stay in the first cache; a multiple of tile_rows()
constexpr int kMostRows = 16;   // of tile_rows()

// Panels of the tile that ends at panel `end`, the tiles before it being as even as can be.
constexpr int panels_at_once(int64_t end) {
  const int64_t tiles = (end + kMostPanels - 1) / kMostPanels;
  return (int)((end + tiles - 1) / tiles);
}

QM_INLINE int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory of one task, cut into arrays at multiples of 64 bytes.
struct Scratch {
  char* next;
  void* memory;

  explicit Scratch(int64_t bytes) : memory(std::aligned_alloc(64, (size_t)padded(bytes + 64, 64))) { next = (char*)memory; }
  ~Scratch() { std::free(memory); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* take(int64_t n) {
    char* const at = next;
    next += size<T>(n);
    return (T*)at;
  }
  template <typename T>
  static int64_t size(int64_t n) {
    return padded(n * (int64_t)sizeof(T), 64);
  }
};

// A blob, and its factors and terms under one grid of the input, every group padded to whole panels.
struct Weights {
  const PackedHead& head;
  const int32_t* start;
  const int8_t* data;
  int64_t lanes, panel, out;  // bytes of a panel; output channels of a group without the channel of ones
  float *scale, *factor, *bias, *shifted;
  float step, shift;

  static int64_t scratch(const IntegerArgs& a) {
    const PackedHead& h = *(const PackedHead*)a.blob;
    return 4 * Scratch::size<float>((h.depthwise ? 1 : h.groups) * (int64_t)h.lanes + 2 * W);
  }

  Weights(const IntegerArgs& a, Scratch& memory, int64_t grid) : head(*(const PackedHead*)a.blob) {
    lanes = head.lanes, out = head.out - head.ones;
    const int64_t all = (head.depthwise ? 1 : head.groups) * lanes;
    start = (const int32_t*)(a.blob + sizeof(PackedHead));
    data = (const int8_t*)(start + all);
    panel = (int64_t)head.taps * head.steps * 4 * kPanel;
    step = a.x.grid[4 * grid], shift = a.finish.follows ? a.x.grid[4 * grid + 1] : 1.f;
    float** const arrays[4] = {&scale, &factor, &bias, &shifted};
    for (float** array : arrays) {
      *array = memory.take<float>(all + 2 * W);
      std::memset(*array, 0, (all + 2 * W) * sizeof(float));
    }
    const IntegerFinish& f = a.finish;
    for (int64_t g = 0; g < head.groups; g++) {
      for (int64_t o = 0; o < out; o++) {
        const int64_t to = place(g, o), from = g * out + o;
        scale[to] = step * f.scale[g * head.out + o];
        if (head.ones) factor[to] = f.factor[from];
        if (f.bias) bias[to] = f.bias[from];
      }
    }
  }

  // Where channel o of group g is in the padded arrays.
  int64_t place(int64_t g, int64_t o) const { return head.depthwise ? g : g * lanes + o; }

  // What the channel of ones of a group gives.
  float ones(const IntegerFinish& f, int64_t g, int32_t sum) const {
    return (float)sum * (step * f.scale[g * head.out + out]);
  }

  // shifted = - shift * (sums of the taps that a mask allows)
  void border(const IntegerFinish& f, const uint8_t* taps, float* to) const {
    const int64_t channels = head.groups * out;
    for (int64_t g = 0; g < head.groups; g++)
      for (int64_t o = 0; o < out; o++) {
        float sum = 0;
        for (int64_t t = 0; t < head.taps; t++)
          if (taps[t]) sum += f.sums[t * channels + g * out + o];
        to[place(g, o)] = -(shift * sum);
      }
  }
};

// All output channels of one group for n rows (of at most kChunk) whose codes lie at `segments`, `apart` bytes from row to
// row; the results go to output rows row, row + 1, ... The terms are those of channel 0, whatever the group.
void finish_rows(const Ending& ending, const Weights& w, int64_t g, const uint8_t* const* segments, int64_t count,
                 int64_t steps, int64_t apart, int64_t n, int64_t row, const Terms& terms, int32_t* sums, float* ones) {
  const int64_t panels = w.lanes / kPanel;
  // from the last panel to the first: the channel of ones is the last, and every other one needs it
  for (int64_t end = panels; end > 0;) {
    const int v = panels_at_once(end), rows = tile_rows(v);
    end -= v;
    const int64_t first = end * kPanel, last = first + v * kPanel < w.out ? first + v * kPanel : w.out;
    const int64_t lane = g * w.lanes + first, pitch = v * kPanel;
    for (int64_t r = 0; r < n; r += rows) {
      int64_t at[kMostRows];
      for (int i = 0; i < rows; i++) at[i] = (r + i < n ? r + i : n - 1) * apart;
      ending.fetch(row + r + rows, rows, g * w.out + first, last - first);
      tile_sums({segments, count, steps, at, w.data + (g * panels + end) * w.panel, w.panel, w.start + lane, sums,
                 w.head.pair, w.head.zero},
                v);
      const int64_t here = n - r < rows ? n - r : rows;
      if (w.head.ones && end + v == panels)
        for (int64_t i = 0; i < here; i++) ones[r + i] = w.ones(ending.f, g, sums[i * pitch + w.out - first]);
      const float* border[kMostRows];
      if (terms.last)
        for (int64_t i = 0; i < here; i++) border[i] = terms.last[r + i] + lane;
      const auto from = [&](const float* t) { return t ? t + lane : nullptr; };
      const Terms t = {terms.scale + lane, from(terms.factor), from(terms.first), from(terms.second),
                       terms.last ? border : nullptr};
      ending.template operator()<false>(t, sums, ones + r, pitch, here, row + r, g * w.out + first, last - first);
    }
  }
}

bool linear(const IntegerArgs& a, int64_t first, int64_t last) {
  const int64_t depth = padded(a.in, 4), sums = kMostRows * kMostPanels * kPanel;
  Scratch memory(Weights::scratch(a) + Scratch::size<uint8_t>(kChunk * depth) + Scratch::size<int32_t>(sums) +
                 Scratch::size<float>(kChunk));
  if (!memory.memory) return false;
  const int64_t rows = a.batch * a.height * a.width, index = first / (rows / a.x.grids);
  const Weights w(a, memory, index);
  uint8_t* const codes = memory.take<uint8_t>(kChunk * depth);
  int32_t* const tile = memory.take<int32_t>(sums);
  float* const ones = memory.take<float>(kChunk);
  const uint8_t every = 1;
  if (a.finish.sums) w.border(a.finish, &every, w.shifted);
  const Ending ending(a.finish);
  const Terms terms = {w.scale, w.head.ones ? w.factor : nullptr, a.finish.sums ? w.shifted : nullptr,
                       a.finish.bias ? w.bias : nullptr, nullptr};
  const CodeGrid grid(a.x.grid + 4 * index, a.x.zero);
  const bool ready = a.x.kind == kCodeRows && depth == a.in, dense = a.x.stride == a.in && depth == a.in;
  if (!ready) std::memset(codes, 0, kChunk * depth);  // the bytes that fill up a row meet weights of zero
  for (int64_t row = first; row < last; row += kChunk) {
    const int64_t n = last - row < kChunk ? last - row : kChunk;
    const uint8_t* from = (const uint8_t*)a.x.data + row * a.x.stride;
    if (!ready) {
      if (dense) take_row(a.x, grid, row * a.in, n * a.in, codes);
      else
        for (int64_t r = 0; r < n; r++) take_row(a.x, grid, (row + r) * a.x.stride, a.in, codes + r * depth);
      from = codes;
    }
    finish_rows(ending, w, 0, &from, 1, w.head.steps, ready ? a.x.stride : depth, n, row, terms, tile, ones);
  }
  return true;
}

}  // namespace
}  // namespace QM_ISA
