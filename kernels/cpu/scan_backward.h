// Backward of the selective scan.
#pragma once

#include <cstdlib>

#include "rounding.h"
#include "scan_walk.h"

namespace QM_ISA {
namespace {

// exp(dt A) as 2^k + p, one array each, instead of exp(dt A) - 1: where that is near -1 it has lost digits of the factor
// itself. Fused multiply-adds lose few of them; without (SSE2) the gradient of A missed 1e-5. Costs the wide sets more
// than it gives.
constexpr bool kSplit = W == 4;

// Scratch of one backward task. Token vectors are indexed [token], state vectors [token][state].
struct Scratch {
  vf *input, *dt, *slope;  // of one channel block
  vf *decay, *history;     // exp(dt A) - 1 or see kSplit; states, history[0] being the one before the chunk
  vf *scale;               // with kSplit only
  vf *sum_B, *sum_C;       // gradients of B and C over all blocks of the group, lanes not yet summed
  vf *adjoint, *dA;        // [block][state], carried from chunk to chunk
  vf *dD, *dbias;          // [block]
  int64_t *at_x, *at_delta, *at_B, *at_C, *at_dy, *pixel;
  void* memory;
  static constexpr int64_t kGap = 17;  // arrays of 2^k bytes in a row would share cache sets and alias in the store buffer

  Scratch(int64_t chunk, int64_t N, int64_t blocks) {
    const int64_t vectors = 3 * chunk + (4 * chunk + 1) * N + 2 * blocks * N + 2 * blocks + (kSplit ? chunk * N : 0) + 12 * kGap;
    const size_t bytes = (vectors * sizeof(vf) + 6 * chunk * sizeof(int64_t) + 127) / 64 * 64;
    memory = std::aligned_alloc(64, bytes);
    if (!memory) return;
    std::memset(memory, 0, bytes);
    vf* p = (vf*)memory;
    auto take = [&p](int64_t n) { return (p += n + kGap) - n - kGap; };
    input = take(chunk), dt = take(chunk), slope = take(chunk);
    decay = take(chunk * N), history = take((chunk + 1) * N);
    scale = take(kSplit ? chunk * N : 0);
    sum_B = take(chunk * N), sum_C = take(chunk * N);
    adjoint = take(blocks * N), dA = take(blocks * N);
    dD = take(blocks), dbias = take(blocks);
    at_x = (int64_t*)p, at_delta = at_x + chunk, at_B = at_delta + chunk;
    at_C = at_B + chunk, at_dy = at_C + chunk, pixel = at_dy + chunk;
  }
  ~Scratch() { std::free(memory); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// Backward of `count` tokens (chunk `c`) of the channels from `first` on, whose carried vectors are at index `block`.
template <int kState, bool kRounded, bool kFull>
void backward_block(const ScanArgs& a, const Scratch& s, int64_t image, int64_t k, int64_t c, int count, int64_t first,
                    int64_t block, double* dgrid) {
  const int N = kState ? kState : (int)a.state;
  const int lanes = kFull ? W : (int)(a.channels - first);
  const int64_t pixels = a.height * a.width;
  const int64_t chunks = (pixels + a.chunk - 1) / a.chunk;
  const float* x = at(a.x, a.x_stride, image, k) + first;
  const float* delta = at(a.delta, a.delta_stride, image, k) + first;
  const float* B = at(a.B, a.B_stride, image, k);
  const float* C = at(a.C, a.C_stride, image, k);
  const float* dy = at(a.dy, a.dy_stride, image, k) + first;
  const float* A = a.A + k * N * a.channels + first;
  const float* start = a.states + ((image * a.directions + k) * chunks + c - 1) * N * a.channels + first;
  const int64_t row = map_row(a), full_row = a.directions * a.channels;
  float* dx = a.dx + image * pixels * row + map_offset(a, k) + first;
  float* ddelta = a.ddelta + image * pixels * full_row + k * a.channels + first;
  const vf bias = a.bias ? load_lanes<kFull>(a.bias + k * a.channels + first, lanes) : vf{};
  const vf skip = a.D ? load_lanes<kFull>(a.D + k * a.channels + first, lanes) : vf{};

  vf rate[kState ? kState : kMaxState], h[kState ? kState : kMaxState];
  for (int n = 0; n < N; n++) {
    rate[n] = load_lanes<kFull>(A + n * a.channels, lanes) * kLog2e;
    h[n] = c > 0 ? load_lanes<kFull>(start + n * a.channels, lanes) : vf{};
    s.history[n] = h[n];
  }
  for (int i = 0; i < count; i++) {
    __builtin_prefetch(dy + s.at_dy[i]);
    __builtin_prefetch(dx + s.pixel[i] * row, 1);
    __builtin_prefetch(ddelta + s.pixel[i] * full_row, 1);
    vf dt = load_lanes<kFull>(delta + s.at_delta[i], lanes) + bias, slope = splat(1.f);
    if (a.softplus) dt = softplus(dt, &slope);
    s.dt[i] = at_most(dt, splat(kLongestStep));
    s.slope[i] = slope;
    s.input[i] = dt * load_lanes<kFull>(x + s.at_x[i], lanes);
  }
  for (int i = 0; i < count; i++) {  // the states of this chunk once more
    const vf dt = s.dt[i], input = s.input[i];
    const float* Bt = B + s.at_B[i];
    vf* decay = s.decay + i * N;
    vf* history = s.history + (i + 1) * N;
    vf* scale = s.scale + i * N;
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      vf d;
      if (kSplit) {
        scale[n] = scaled_split(splat(1.f), dt * rate[n], &d);
        d = exp2m1_poly(d) * scale[n];
        h[n] = (d * h[n] + scale[n] * h[n]) + input * Bt[n];
      } else {
        d = exp2m1(dt * rate[n]);
        h[n] = (d * h[n] + h[n]) + input * Bt[n];
      }
      decay[n] = d;
      history[n] = h[n];
    }
  }

  vf r[kState ? kState : kMaxState], dA[kState ? kState : kMaxState];
  for (int n = 0; n < N; n++) {
    rate[n] = load_lanes<kFull>(A + n * a.channels, lanes);
    r[n] = s.adjoint[block * N + n];
    dA[n] = vf{};  // sums over tokens start afresh in every chunk: less rounding over long sequences
  }
  vf dD = {}, dbias = {};
  const Rounding grid(kRounded ? a.grid : kNoGrid);
  RoundingSums sums = {};
  const bool add = a.merge && k > 0;
  for (int i = count - 1; i >= 0; i--) {
    const float* Bt = B + s.at_B[i];
    const float* Ct = C + s.at_C[i];
    const vf gy = load_lanes<kFull>(dy + s.at_dy[i], lanes);
    const vf dt = s.dt[i], input = s.input[i];
    const vf* decay = s.decay + i * N;
    const vf* scale = s.scale + i * N;
    const vf* before = s.history + i * N;
    const vf* after = before + N;
    vf* sum_B = s.sum_B + i * N;
    vf* sum_C = s.sum_C + i * N;
    vf to_input = {}, to_dt = {};
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      vf g = gy * Ct[n], seen = after[n];
      if (kRounded) g = sums.add(grid, g, after[n], &seen);
      g += r[n];
      sum_C[n] += gy * seen;
      sum_B[n] += g * input;
      to_input += g * Bt[n];
      r[n] = g * decay[n] + (kSplit ? g * scale[n] : g);
      const vf flow = r[n] * before[n];
      to_dt += flow * rate[n];
      dA[n] += flow * dt;
    }
    const vf xt = load_lanes<kFull>(x + s.at_x[i], lanes);
    const vf to_delta = (to_dt + to_input * xt) * s.slope[i];
    vf to_x = dt * to_input + skip * gy;
    dD += gy * xt;
    dbias += to_delta;
    store_lanes<kFull>(ddelta + s.pixel[i] * full_row, to_delta, lanes);
    float* out = dx + s.pixel[i] * row;
    if (add) to_x += load_lanes<kFull>(out, lanes);
    store_lanes<kFull>(out, to_x, lanes);
  }
  for (int n = 0; n < N; n++) {
    s.adjoint[block * N + n] = r[n];
    s.dA[block * N + n] += dA[n];
  }
  s.dD[block] += dD;
  s.dbias[block] += dbias;
  if (kRounded) sums.flush(dgrid);
}

template <int kState, bool kRounded>
bool backward_sized(const ScanArgs& a, int64_t image, int64_t k, int64_t group) {
  const int N = (int)a.state;
  const int64_t begin = group_begin(a, group), end = group_begin(a, group + 1);
  const int64_t pixels = a.height * a.width;
  const Scratch s(a.chunk, N, (end - begin + W - 1) / W);
  if (!s.memory) return false;
  const Walk walk(a, k);
  double dgrid[4] = {};
  const int64_t offset = ((group * a.batch + image) * pixels * a.directions + k) * N;
  for (int64_t c = (pixels + a.chunk - 1) / a.chunk - 1; c >= 0; c--) {
    const int64_t t0 = c * a.chunk, t1 = t0 + a.chunk < pixels ? t0 + a.chunk : pixels;
    walk.offsets(a.x_stride, t0, t1, s.at_x);
    walk.offsets(a.delta_stride, t0, t1, s.at_delta);
    walk.offsets(a.B_stride, t0, t1, s.at_B);
    walk.offsets(a.C_stride, t0, t1, s.at_C);
    walk.offsets(a.dy_stride, t0, t1, s.at_dy);
    walk.pixels(t0, t1, s.pixel);
    for (int64_t first = begin; first < end; first += W) {
      if (first + W <= a.channels)
        backward_block<kState, kRounded, true>(a, s, image, k, c, (int)(t1 - t0), first, (first - begin) / W, dgrid);
      else
        backward_block<kState, kRounded, false>(a, s, image, k, c, (int)(t1 - t0), first, (first - begin) / W, dgrid);
    }
    for (int64_t i = 0; i < t1 - t0; i++) {
      const int64_t to = offset + s.pixel[i] * a.directions * N;
      for (int n = 0; n < N; n++) {
        a.dB[to + n] = sum(s.sum_B[i * N + n]);
        a.dC[to + n] = sum(s.sum_C[i * N + n]);
        s.sum_B[i * N + n] = s.sum_C[i * N + n] = vf{};
      }
    }
  }
  for (int64_t first = begin; first < end; first += W) {
    const int lanes = first + W <= a.channels ? W : (int)(a.channels - first);
    const int64_t block = (first - begin) / W, which = image * a.directions + k;
    for (int n = 0; n < N; n++) store(a.dA + (which * N + n) * a.channels + first, s.dA[block * N + n], lanes);
    if (a.dD) store(a.dD + which * a.channels + first, s.dD[block], lanes);
    if (a.dbias) store(a.dbias + which * a.channels + first, s.dbias[block], lanes);
  }
  if (kRounded) std::memcpy(a.dgrid + ((group * a.batch + image) * a.directions + k) * 4, dgrid, sizeof dgrid);
  return true;
}

template <bool kRounded>
bool backward_any(const ScanArgs& a, int64_t image, int64_t k, int64_t group) {
  switch (a.state) {
    case 8: return backward_sized<8, kRounded>(a, image, k, group);
    case 10: return backward_sized<10, kRounded>(a, image, k, group);
    case 16: return backward_sized<16, kRounded>(a, image, k, group);
    default: return backward_sized<0, kRounded>(a, image, k, group);
  }
}

bool backward(const ScanArgs& a, int64_t image, int64_t k, int64_t group) {
  return a.grid ? backward_any<true>(a, image, k, group) : backward_any<false>(a, image, k, group);
}

}  // namespace
}  // namespace QM_ISA
