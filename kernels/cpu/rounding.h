// Values that never leave a kernel (states of a scan, probabilities of attention) on a grid, where they are quantized, with
// the rule and the gradients of ops/lsq, and for values exactly on a bound those of quantizers/ste.py on_bounds.
#pragma once

#include "simd.h"

namespace QM_ISA {
namespace {

constexpr float kNoGrid[6] = {1, 0, 0, 0, 0, 0};  // as ScanArgs::grid

struct Rounding {
  vf step, offset, zero, inverse;
  vf lowest, highest;  // codes
  vf first, last;      // their values with the offset
  vf lower, upper;     // bounds; NaN where there are none

  explicit Rounding(const float* g)
      : step(splat(g[0])),
        offset(splat(g[1])),
        zero(splat(g[1] / g[0])),
        inverse(splat(1.f / g[0])),
        lowest(splat(g[2])),
        highest(splat(g[3])),
        first(splat(g[2] * g[0])),
        last(splat(g[3] * g[0])),
        lower(splat(g[4])),
        upper(splat(g[5])) {}

  // v / step as a division rounds it; v not far beyond first and last, NaN stays NaN. A product with the inverse alone would
  // round some halves, such as the one a value of 0 may lie on, to the other side.
  QM_INLINE vf divided(vf v) const {
#if defined(__FMA__) || defined(__aarch64__)
    const vf q = v * inverse;
    return (v - q * step) * inverse + q;
#else
    return v / step;
#endif
  }

  // (h + offset) / step, no further than a step beyond the codes.
  QM_INLINE vf place(vf h) const { return divided(at_most(at_least(h + offset, first - step), last + step)); }
  QM_INLINE vf clamped(vf place) const { return at_most(at_least(place, lowest), highest); }
  QM_INLINE vf value(vf code) const { return (code - zero) * step; }
  QM_INLINE vf rounded(vf h) const { return value(nearest(divided(at_most(at_least(h + offset, first), last)))); }
};

// Gradients of a grid: sums over the values.
struct RoundingSums {
  vf step, offset, lower, upper;

  // Takes in the gradient of value h once rounded; gives that value and the gradient of h.
  QM_INLINE vf add(const Rounding& grid, vf grad, vf h, vf* seen) {
    const vf place = grid.place(h), inner = grid.clamped(place), code = nearest(inner);
    const vi inside = inner == place, below = h == grid.lower, above = h == grid.upper, on = below | above;
    *seen = grid.value(code);
    const vf through = on ? vf{} : grad;
    step += through * (code - (inside ? place : place * 0.f));
    offset -= inside ? vf{} : through;
    lower += below ? grad : vf{};
    upper += above ? grad : vf{};
    return (inside | on) ? grad : vf{};
  }

  // Adds the sums over the lanes to those of step, offset, lower and upper.
  QM_INLINE void flush(double* total) {
    const vf sums[4] = {step, offset, lower, upper};
    for (int i = 0; i < 4; i++) total[i] += sum(sums[i]);
    *this = RoundingSums{};
  }
};

}  // namespace
}  // namespace QM_ISA
