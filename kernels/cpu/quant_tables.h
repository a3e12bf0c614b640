// What the quantizers work out for a tensor, or a row of one, between their passes over the values.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "dls_grid.h"
#include "quant.h"

namespace {

Moments merge(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, gap = b.mean - a.mean;
  Moments m = {count, a.mean + gap * b.count / count, a.m2 + b.m2 + gap * gap * a.count * b.count / count, a.low, a.high};
  m.low = b.low < m.low || b.low != b.low ? b.low : m.low;
  m.high = b.high > m.high || b.high != b.high ? b.high : m.high;
  return m;
}

// Gradients of step and offset of one group carried back to its statistics (4), and added to dw and dv.
void dls_grid_backward(double d_step, double d_offset, const float* stats, const Grid& grid, const float* w, const float* v,
                       double cap_share, double* d_stats, double* dw, double* dv) {
  const double mean = stats[0], std = stats[1], low = stats[2], high = stats[3], offset = grid.offset;
  const DlsStep s = dls_step(stats, offset, w, cap_share);
  const double ratio = grid.step / s.p, power = ratio * ratio * ratio * ratio * ratio;
  const double d_raw = s.raw < 0 ? -d_step * power : d_step * power;
  const double shifted = mean + offset;
  const double terms[4] = {std::fabs(shifted), std, low + offset, high + offset};
  const double d_shifted = d_raw * w[0] * (shifted > 0 ? 1 : shifted < 0 ? -1 : shifted);
  d_offset += d_shifted + d_raw * ((double)w[2] + w[3]);
  const double direct[4] = {d_shifted, d_raw * w[1], d_raw * w[2], d_raw * w[3]};
  for (int i = 0; i < 4; i++) {
    dw[i] += d_raw * terms[i];
    dv[i] += d_offset * stats[i];
    d_stats[i] = direct[i] + d_offset * v[i];
  }
}

// max(|scale|, floor), or scale as it is for a floor below 0; NaN stays.
float step_in_use(float scale, double floor) {
  if (floor < 0) return scale;
  const float size = std::fabs(scale), least = (float)floor;
  return size < least ? least : size;
}

// The gradient of the step in use carried to scale: sign(scale), +1 at 0, where there is a floor.
float step_gradient(double sum, float scale, double floor, double grad_scale) {
  const float grad = (float)sum * (float)grad_scale;
  return floor >= 0 && scale < 0 ? -grad : grad;
}

// Thresholds in use and whose each is (ops/rfa/reference.py: order).
struct Order {
  std::vector<float> thresholds;
  std::vector<int64_t> source;
};

Order rfa_order(const float* given, int64_t levels, double min_gap) {
  Order o = {std::vector<float>(given, given + levels), std::vector<int64_t>(levels)};
  bool sorted = true;
  for (int64_t i = 0; i < levels; i++) {
    o.source[i] = i;
    sorted = sorted && (i == 0 || (double)given[i] - (double)given[i - 1] >= min_gap);
  }
  if (min_gap < 0 || sorted) return o;
  const float gap = (float)min_gap;
  float highest = given[0];
  int64_t source = 0;
  for (int64_t i = 0; i < levels; i++) {
    const float flat = given[i] - gap * (float)i;
    if (flat != flat || (highest == highest && flat >= highest)) highest = flat, source = i;
    o.source[i] = source;
    o.thresholds[i] = given[source] + gap * (float)(i - source);
  }
  return o;
}

RfaTables rfa_tables(const float* thresholds, int64_t levels, float step, float offset, float qmin) {
  RfaTables t = {};
  t.levels = levels, t.step = step, t.offset = offset, t.zero = offset / step, t.qmin = qmin;
  const int last = (int)levels - 1;
  for (int i = 0; i < last; i++) {
    t.midpoints[i] = (thresholds[i] + thresholds[i + 1]) / 2;
    t.slope[i + 1] = 1.f / (thresholds[i + 1] - thresholds[i]);
    t.start[i + 1] = thresholds[i];
  }
  t.slope[0] = t.slope[levels] = 0.1f;
  t.start[0] = thresholds[0];
  t.start[levels] = thresholds[last];
  std::copy(thresholds, thresholds + levels, t.thresholds);
  for (int i = last - 2; i >= 0; i--) t.midpoints[i] = std::min(t.midpoints[i], t.midpoints[i + 1]);
  for (int i = last - 1; i >= 0; i--) t.thresholds[i] = std::min(t.thresholds[i], t.thresholds[i + 1]);
  return t;
}

}  // namespace
