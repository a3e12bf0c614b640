// The rule of DLS: statistics of a tensor -> its grid; formulas in qmambair_basicsr/ops/dls/README.md.
#pragma once

#include <algorithm>
#include <cmath>

#include "quant.h"

struct DlsStep {
  double p, c, raw;  // |w . shifted statistics| and the cap, floored; the dot product itself
};

inline DlsStep dls_step(const float* stats, double offset, const float* w, double cap_share) {
  const double mean = stats[0], std = stats[1], low = stats[2], high = stats[3];
  const double floor = std::max(std::fabs(low), std::fabs(high)) * 0x1p-20 + 1e-12;
  const double raw = w[0] * std::fabs(mean + offset) + w[1] * std + w[2] * (low + offset) + w[3] * (high + offset);
  const double p = std::fabs(raw), c = (high - low) * cap_share;
  return {p < floor ? floor : p, c < floor ? floor : c, raw};  // NaN stays: its compares are false
}

inline Grid dls_grid(const float* stats, const float* w, const float* v, float qmin, float qmax, double cap_share) {
  const double exact = (double)v[0] * stats[0] + (double)v[1] * stats[1] + (double)v[2] * stats[2] + (double)v[3] * stats[3];
  const float offset = (float)exact;
  const DlsStep s = dls_step(stats, offset, w, cap_share);
  const double small = s.p < s.c ? s.p : s.c, large = s.p < s.c ? s.c : s.p;
  const double ratio = small / large;
  const float step = (float)(s.p != s.p ? s.p : small * std::pow(1 + ratio * ratio * ratio * ratio, -0.25));
  float zero = offset / step;
  zero = zero < qmin ? qmin : zero > qmax ? qmax : zero;
  return {step, offset, stats[2] >= 0 ? std::ceil(zero) : qmin, stats[3] <= 0 ? std::floor(zero) : qmax};
}
