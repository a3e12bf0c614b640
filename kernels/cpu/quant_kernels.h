// Quantizers over a stretch of contiguous values. Sums are kept per lane in float for kRun values, then in double.
#pragma once

#include "quant.h"
#include "simd.h"

namespace QM_ISA {
namespace {

constexpr int64_t kRun = 1024;
constexpr float kLargest = 0x1p80f;  // ops/limits.py: larger values count as this in statistics and gradients

QM_INLINE vf limited(vf v) { return at_most(at_least(v, splat(-kLargest)), splat(kLargest)); }

// Calls f(offset, lanes, full) for each vector of [0, n); `full` is a compile-time constant after inlining.
template <typename F>
QM_INLINE void for_vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, W, true);
  if (i < n) f(i, (int)(n - i), false);
}

QM_INLINE vf load_some(const float* p, int lanes, bool full) { return full ? load(p) : load(p, lanes); }

QM_INLINE void store_some(float* p, vf v, int lanes, bool full) {
  if (full)
    store(p, v);
  else
    store(p, v, lanes);
}

Moments moments(const float* x, int64_t n) {
  vf low = limited(splat(x[0])), high = low;
  Moments total = {0, 0, 0, low[0], low[0]};
  for (int64_t i = 0; i < n; i += kRun) {
    const int64_t count = n - i < kRun ? n - i : kRun;
    const float* p = x + i;
    vf sums = {};
    for_vectors(count, [&](int64_t j, int lanes, bool full) {
      const vf v = limited(load_some(p + j, lanes, full));
      sums += v;
      vf extreme = v;
      if (!full)
        for (int l = lanes; l < W; l++) extreme[l] = v[0];
      low = extreme < low ? extreme : low;
      high = extreme > high ? extreme : high;
    });
    const double mean = (double)sum(sums) / (double)count;
    const vf centre = splat((float)mean);
    vf squares = {}, rest = {};
    for_vectors(count, [&](int64_t j, int lanes, bool full) {
      vf d = limited(load_some(p + j, lanes, full)) - centre;
      if (!full)
        for (int l = lanes; l < W; l++) d[l] = 0.f;
      squares += d * d;
      rest += d;
    });
    // the centre is a rounded mean: the sum of what is left corrects it
    const double left = sum(rest), true_mean = (double)centre[0] + left / (double)count;
    const double m2 = (double)sum(squares) - left * left / (double)count;
    const double merged = total.count + (double)count, gap = true_mean - total.mean;
    total.m2 += (m2 > 0 || m2 != m2 ? m2 : 0) + gap * gap * total.count * (double)count / merged;
    total.mean += gap * (double)count / merged;
    total.count = merged;
  }
  for (int l = 0; l < W; l++) {
    if (low[l] < total.low) total.low = low[l];
    if (high[l] > total.high) total.high = high[l];
  }
  if (total.mean != total.mean) total.low = total.high = (float)total.mean;
  return total;
}

void quantize(const float* x, float* y, int64_t n, const Grid& grid) {
  const vf step = splat(grid.step), offset = splat(grid.offset), lo = splat(grid.lo), hi = splat(grid.hi);
  const vf zero = splat(grid.offset / grid.step);
  for_vectors(n, [&](int64_t i, int lanes, bool full) {
    const vf v = (load_some(x + i, lanes, full) + offset) / step;
    const vf code = nearest(at_most(at_least(v, lo), hi));
    store_some(y + i, (code - zero) * step, lanes, full);
  });
}

GridSums grid_sums(const float* grad, const float* x, float* dx, int64_t n, const Grid& grid, float low, float high) {
  const vf step = splat(grid.step), offset = splat(grid.offset), lo = splat(grid.lo), hi = splat(grid.hi);
  const vf lowest = splat(low), highest = splat(high);
  GridSums total = {};
  for (int64_t i = 0; i < n; i += kRun) {
    const int64_t count = n - i < kRun ? n - i : kRun;
    vf to_step = {}, to_offset = {};
    vi at_low = {}, at_high = {};
    for_vectors(count, [&](int64_t j, int lanes, bool full) {
      const vf g = load_some(grad + i + j, lanes, full);  // zero beyond the end, and so are its products
      vf value = limited(load_some(x + i + j, lanes, full));
      const vf v = (value + offset) / step;
      const vf clamped = at_most(at_least(v, lo), hi);
      const vi inside = clamped == v;
      to_step += g * (nearest(clamped) - (inside ? v : v * 0.f));
      to_offset -= inside ? vf{} : g;
      if (dx) store_some(dx + i + j, inside ? g : vf{}, lanes, full);
      if (!full)
        for (int l = lanes; l < W; l++) value[l] = __builtin_nanf("");
      at_low -= value == lowest;
      at_high -= value == highest;
    });
    total.step += sum(to_step);
    total.offset += sum(to_offset);
    for (int l = 0; l < W; l++) {
      total.lowest += at_low[l];
      total.highest += at_high[l];
    }
  }
  return total;
}

void grid_input(const float* grad, const float* x, float* dx, int64_t n, const Grid& grid, float constant, float slope,
                float low, float at_low, float high, float at_high) {
  const vf step = splat(grid.step), offset = splat(grid.offset), lo = splat(grid.lo), hi = splat(grid.hi);
  const vf lowest = splat(low), highest = splat(high), to_low = splat(at_low), to_high = splat(at_high);
  for_vectors(n, [&](int64_t i, int lanes, bool full) {
    const vf g = load_some(grad + i, lanes, full), value = limited(load_some(x + i, lanes, full));
    const vf v = (value + offset) / step;
    const vf clamped = at_most(at_least(v, lo), hi);
    vf d = (clamped == v ? g : vf{}) + (value * slope + constant);
    d += value == lowest ? to_low : vf{};
    d += value == highest ? to_high : vf{};
    store_some(dx + i, d, lanes, full);
  });
}

// How many of the sorted borders each lane exceeds.
QM_INLINE vi exceeded(vf v, const float* borders, int count) {
  vi bins = {};
  if (count <= 32) {
    for (int i = 0; i < count; i++) bins -= v > splat(borders[i]);
    return bins;
  }
  for (int l = 0; l < W; l++) {
    int first = 0;
    for (int left = count; left > 0;) {
      const int half = left / 2;
      const bool above = v[l] > borders[first + half];
      first = above ? first + half + 1 : first;
      left = above ? left - half - 1 : half;
    }
    bins[l] = first;
  }
  return bins;
}

QM_INLINE vf to_float(vi v) { return __builtin_convertvector(v, vf); }

void rfa_forward(const float* w, float* y, int64_t n, const RfaTables& t) {
  const vf step = splat(t.step), offset = splat(t.offset), zero = splat(t.zero);
  const vf lo = splat(t.qmin), hi = splat(t.qmin + (float)(t.levels - 1));
  for_vectors(n, [&](int64_t i, int lanes, bool full) {
    const vf v = at_most(at_least((load_some(w + i, lanes, full) + offset) / step, lo), hi);
    const vf level = to_float(exceeded(v, t.midpoints, (int)t.levels - 1)) + lo;
    store_some(y + i, ((v == v ? level : v) - zero) * step, lanes, full);
  });
}

void rfa_backward(const float* grad, const float* w, float* dw, int64_t n, const RfaTables& t, RfaSums* sums) {
  const vf step = splat(t.step), offset = splat(t.offset);
  const vf lo = splat(t.qmin), hi = splat(t.qmin + (float)(t.levels - 1));
  const int bins = (int)t.levels + 1;
  static thread_local float total[(kMaxLevels + 1) * W], right[(kMaxLevels + 1) * W];  // [bin][lane]
  std::memset(total, 0, sizeof(float) * bins * W);
  std::memset(right, 0, sizeof(float) * bins * W);
  double to_step = 0, to_offset = 0;
  for (int64_t i = 0; i < n; i += kRun) {
    const int64_t count = n - i < kRun ? n - i : kRun;
    vf run_step = {}, run_offset = {};
    for_vectors(count, [&](int64_t j, int lanes, bool full) {
      const vf g = load_some(grad + i + j, lanes, full);  // zero beyond the end, and so is what it contributes
      const vf raw = (load_some(w + i + j, lanes, full) + offset) / step;
      const vf v = at_most(at_least(raw, lo), hi);
      const vi bin = exceeded(v, t.thresholds, (int)t.levels);
      vf slope, start;
      for (int l = 0; l < W; l++) {
        slope[l] = t.slope[bin[l]];
        start[l] = t.start[bin[l]];
      }
      const vf moved = g * ((v - start) * slope);
      for (int l = 0; l < W; l++) {
        total[bin[l] * W + l] += g[l];
        right[bin[l] * W + l] += moved[l];
      }
      const vf d = v == raw ? g * slope : vf{};
      const vf level = to_float(exceeded(v, t.midpoints, (int)t.levels - 1)) + lo;
      run_step += g * (v == v ? level : v) - d * v;
      run_offset += d - g;
      store_some(dw + i + j, d, lanes, full);
    });
    to_step += sum(run_step);
    to_offset += sum(run_offset);
  }
  sums->step = to_step;
  sums->offset = to_offset;
  for (int b = 0; b < bins; b++) {
    sums->total[b] = sums->right[b] = 0;
    for (int l = 0; l < W; l++) {
      sums->total[b] += total[b * W + l];
      sums->right[b] += right[b * W + l];
    }
  }
}

}  // namespace
}  // namespace QM_ISA
