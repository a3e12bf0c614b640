// Forward of the selective scan.
#pragma once

#include "rounding.h"
#include "scan_walk.h"

namespace QM_ISA {
namespace {

// Tokens taken at once, none beyond the end of a chunk. Within a tile every channel block of the task has its turn: a row
// of a map comes from memory once, also where rows do not start on cache lines (D = 120). Addresses and step sizes come
// before the recurrence, so that neither the latency of softplus nor that of memory (columns are too far apart for the
// hardware prefetcher) holds it up.
constexpr int kTile = 64;

struct Tile {
  int count;
  bool first;     // of its sequence: states are zero before it
  int64_t at_x[kTile], at_delta[kTile], at_B[kTile], at_C[kTile], row[kTile];
  float* before;  // states (N, D) at its start and its end, may be the same
  float* after;
};

// kState > 0 fixes N at compile time (states stay in registers); 0 reads it from the arguments. kRounded: there is a grid.
template <int kState, bool kRounded, bool kFull>
void forward_tile(const ScanArgs& a, const Tile& tile, int64_t image, int64_t k, int64_t first) {
  const int N = kState ? kState : (int)a.state;
  const int lanes = kFull ? W : (int)(a.channels - first);
  const float* x = at(a.x, a.x_stride, image, k) + first;
  const float* delta = at(a.delta, a.delta_stride, image, k) + first;
  const float* B = at(a.B, a.B_stride, image, k);
  const float* C = at(a.C, a.C_stride, image, k);
  float* y = a.y + image * a.height * a.width * map_row(a) + map_offset(a, k) + first;
  const vf bias = a.bias ? load_lanes<kFull>(a.bias + k * a.channels + first, lanes) : vf{};
  const vf skip = a.D ? load_lanes<kFull>(a.D + k * a.channels + first, lanes) : vf{};
  const bool add = a.merge && k > 0;

  vf dt[kTile], input[kTile], base[kTile], before[kTile];
  for (int i = 0; i < tile.count; i++) {
    const vf xt = load_lanes<kFull>(x + tile.at_x[i], lanes);
    vf step = load_lanes<kFull>(delta + tile.at_delta[i], lanes) + bias, slope;
    if (a.softplus) step = softplus(step, &slope);
    dt[i] = at_most(step, splat(kLongestStep));
    input[i] = step * xt;
    base[i] = skip * xt;
    if (add) before[i] = load_lanes<kFull>(y + tile.row[i], lanes);
  }
  vf rate[kState ? kState : kMaxState], h[kState ? kState : kMaxState];
  for (int n = 0; n < N; n++) {
    rate[n] = load_lanes<kFull>(a.A + (k * N + n) * a.channels + first, lanes) * kLog2e;
    h[n] = tile.first ? vf{} : load_lanes<kFull>(tile.before + n * a.channels + first, lanes);
  }
  const Rounding grid(kRounded ? a.grid : kNoGrid);
  for (int i = 0; i < tile.count; i++) {
    const float* Bt = B + tile.at_B[i];
    const float* Ct = C + tile.at_C[i];
    const vf step = dt[i], in = input[i];
    vf even = base[i], odd = {};
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      h[n] = decayed(h[n], step * rate[n]) + in * Bt[n];
      (n & 1 ? odd : even) += (kRounded ? grid.rounded(h[n]) : h[n]) * Ct[n];
    }
    even += odd;
    if (add) even += before[i];  // last, as where directions are summed by the caller
    store_lanes<kFull>(y + tile.row[i], even, lanes);
  }
  for (int n = 0; n < N; n++) store_lanes<kFull>(tile.after + n * a.channels + first, h[n], lanes);
}

template <int kState, bool kRounded>
void forward_sized(const ScanArgs& a, int64_t image, int64_t k, int64_t first, int64_t last) {
  const Walk walk(a, k);
  const int64_t states = a.state * a.channels, chunks = a.save_states ? (walk.length + a.chunk - 1) / a.chunk : 1;
  float* const start = a.states + (image * a.directions + k) * chunks * states;
  const float* B = at(a.B, a.B_stride, image, k);
  const float* C = at(a.C, a.C_stride, image, k);
  Tile tile;
  tile.after = start;
  for (int64_t begin = 0; begin < walk.length; begin += tile.count) {
    const int64_t chunk = begin / a.chunk;
    int64_t end = begin + kTile < walk.length ? begin + kTile : walk.length;
    if (a.save_states && end > (chunk + 1) * a.chunk) end = (chunk + 1) * a.chunk;
    tile.count = (int)(end - begin);
    tile.first = begin == 0;
    tile.before = tile.after;
    tile.after = a.save_states ? start + chunk * states : start;
    walk.offsets(a.x_stride, begin, end, tile.at_x);
    walk.offsets(a.delta_stride, begin, end, tile.at_delta);
    walk.offsets(a.B_stride, begin, end, tile.at_B);
    walk.offsets(a.C_stride, begin, end, tile.at_C);
    walk.pixels(begin, end, tile.row);
    for (int i = 0; i < tile.count; i++) {
      tile.row[i] *= map_row(a);
      __builtin_prefetch(B + tile.at_B[i]);
      __builtin_prefetch(C + tile.at_C[i]);
    }
    for (int64_t block = first; block < last; block += W) {
      if (block + W <= a.channels)
        forward_tile<kState, kRounded, true>(a, tile, image, k, block);
      else
        forward_tile<kState, kRounded, false>(a, tile, image, k, block);
    }
  }
}

template <bool kRounded>
void forward_any(const ScanArgs& a, int64_t image, int64_t k, int64_t first, int64_t last) {
  switch (a.state) {
    case 8: return forward_sized<8, kRounded>(a, image, k, first, last);
    case 10: return forward_sized<10, kRounded>(a, image, k, first, last);
    case 16: return forward_sized<16, kRounded>(a, image, k, first, last);
    default: return forward_sized<0, kRounded>(a, image, k, first, last);
  }
}

void forward(const ScanArgs& a, int64_t image, int64_t k, int64_t first, int64_t last) {
  return a.grid ? forward_any<true>(a, image, k, first, last) : forward_any<false>(a, image, k, first, last);
}

}  // namespace
}  // namespace QM_ISA
