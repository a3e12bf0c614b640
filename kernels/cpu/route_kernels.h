// MambaIRv2's pick of a prompt: argmax of logits with Gumbel noise, in one pass.
#pragma once

#include <cmath>

#include "glue_kernels.h"

namespace QM_ISA {
namespace {

// log(v) of a normal v > 0, relative error 1e-7 (of 1 near 1).
QM_INLINE vf natural_log(vf v) {
  const vi bits = (vi)v - splat_int(0x3f3504f3);  // sqrt(1/2)
  vf e = {};
  const vi whole = bits >> 23;
  e = __builtin_convertvector(whole, vf);
  const vf z = (vf)((bits & splat_int(0x007fffff)) + splat_int(0x3f3504f3)) - 1.f, s = z * z;
  vf p = splat(7.0376836292e-2f);
  p = p * z + -1.1514610310e-1f;
  p = p * z + 1.1676998740e-1f;
  p = p * z + -1.2420140846e-1f;
  p = p * z + 1.4249322787e-1f;
  p = p * z + -1.6668057665e-1f;
  p = p * z + 2.0000714765e-1f;
  p = p * z + -2.4999993993e-1f;
  p = p * z + 3.3333331174e-1f;
  return (z + (p * z * s + e * -2.12194440e-4f - 0.5f * s)) + e * 0.693359375f;
}

inline float exact_score(float score, float uniform) {
  const float inner = -(float)std::log((double)uniform);
  return score - (float)std::log((double)inner);
}

constexpr float kNearScores = 1e-5f;  // closer scores are computed once more, exactly

void route_rows(const RouteArgs& a, int64_t first, int64_t last) {
  alignas(64) float found[kMostPrompts];
  const vf least = splat(-__builtin_inff());
  for (int64_t m = first; m < last; m++) {
    const float *const score = a.scores + m * a.scores_stride, *const uniform = a.uniform + m * a.prompts;
    vf top = least;
    for_vectors(a.prompts, [&](int64_t t, int lanes, bool full) {
      const vf u = load_some(uniform + t, lanes, full), s = load_some(score + t, lanes, full);
      // 1 - 2^-24 is the largest uniform number: its logarithm is normal
      vf v = s - natural_log(-natural_log(at_least(u, splat(1e-30f))));
      v = u > 0.f ? v : least;
      store(found + t, v);
      top = v > top ? v : top;
    });
    float best = top[0];
    for (int l = 1; l < W; l++) best = top[l] > best ? top[l] : best;
    const float near = best - kNearScores * (1.f + __builtin_fabsf(best));
    vi count = {}, place = splat_int(-1), lane;
    for (int l = 0; l < W; l++) lane[l] = l;
    for (int64_t t = 0; t < a.prompts; t += W) {
      vf v = load(found + t);
      if (t + W > a.prompts) v = first_lanes(v, (int)(a.prompts - t), least);
      const vi hit = v >= near;
      count -= hit;
      place = hit ? lane + (int32_t)t : place;
    }
    int32_t candidates = 0, picked = -1;
    for (int l = 0; l < W; l++) candidates += count[l], picked = place[l] > picked ? place[l] : picked;
    if (candidates != 1) {  // hardly ever: decide exactly, the first of equal ones (of none: all that there is, is NaN)
      picked = 0;
      float winner = 0.f;
      bool any = false;
      for (int64_t t = 0; t < a.prompts; t++)
        if (found[t] >= near) {
          const float value = exact_score(score[t], uniform[t]);
          if (!any || value > winner) picked = (int32_t)t, winner = value;
          any = true;
        }
    }
    a.picked[m] = picked;
  }
}

}  // namespace
}  // namespace QM_ISA
