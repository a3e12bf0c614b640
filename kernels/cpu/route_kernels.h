// MambaIRv2's pick of a prompt: argmax of logits with Gumbel noise, in one pass.
#pragma once

#include <cmath>

#include "glue_kernels.h"

namespace QM_ISA {
namespace {

// log(v) of a normal v > 0, relative error 6e-5 and that of 1 near 1: enough to tell which prompts may be the largest.
QM_INLINE vf rough_log(vf v) {
  const vi bits = (vi)v - splat_int(0x3f3504f3);  // sqrt(1/2)
  const vf e = __builtin_convertvector(bits >> 23, vf);
  const vf z = (vf)((bits & splat_int(0x007fffff)) + splat_int(0x3f3504f3)) - 1.f;
  vf p = splat(0.17840609f);
  p = p * z + -0.26991433f;
  p = p * z + 0.33570722f;
  p = p * z + -0.49953595f;
  return (p * (z * z) + z) + e * 0.69314718f;
}

inline float exact_score(float score, float uniform) {
  const float inner = -(float)std::log((double)uniform);
  return score - (float)std::log((double)inner);
}

// Closer scores are computed once more, exactly. A rough score is off by 6e-5 (the inner logarithm's relative error) and
// 0.35 times that (the outer one's, whose whole powers of two are exact), and by the rounding of large scores.
constexpr float kNearScores = 2.5e-4f, kRoundedScores = 1e-6f;

constexpr int kRouteRows = 8;  // tokens whose scores are computed at once

// Rows of a linear layer: out = bias + x w, `lanes` outputs of `count` (at most kRouteRows) tokens.
void dense_rows(const float* x, int64_t stride, int count, int64_t inputs, const float* weight, const float* bias,
                int64_t lanes, float* out) {
  const float* rows[kRouteRows];
  for (int r = 0; r < kRouteRows; r++) rows[r] = x + (r < count ? r : count - 1) * stride;
  for (int64_t v = 0; v < lanes; v += W) {
    vf sum[kRouteRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRouteRows; r++) sum[r] = load(bias + v);
    for (int64_t i = 0; i < inputs; i++) {
      const vf w = load(weight + i * lanes + v);
#pragma GCC unroll 8
      for (int r = 0; r < kRouteRows; r++) sum[r] += w * rows[r][i];
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRouteRows; r++) store(out + r * lanes + v, sum[r]);
  }
}

// The largest lane, by halves.
template <typename T, int kLanes>
QM_INLINE T largest(T __attribute__((vector_size(sizeof(T) * kLanes))) v) {
  if constexpr (kLanes == 2) {
    return v[0] > v[1] ? v[0] : v[1];
  } else {
    typedef T half __attribute__((vector_size(sizeof(T) * kLanes / 2)));
    half halves[2];
    std::memcpy(halves, &v, sizeof v);
    return largest<T, kLanes / 2>(halves[0] > halves[1] ? halves[0] : halves[1]);
  }
}

// The prompt with the largest score.
int32_t pick(const RouteArgs& a, const float* score, const float* uniform) {
  alignas(64) float found[kMostPrompts];
  const vf least = splat(-__builtin_inff());
  vf top = least;
  for_vectors(a.prompts, [&](int64_t t, int lanes, bool full) {
    const vf u = load_some(uniform + t, lanes, full), s = load_some(score + t, lanes, full);
    // 1 - 2^-24 is the largest uniform number: its logarithm is normal
    vf v = s - rough_log(-rough_log(at_least(u, splat(1e-30f))));
    v = u > 0.f ? v : least;
    store(found + t, v);
    top = v > top ? v : top;
  });
  const float best = largest<float, W>(top);
  const float near = best - (kNearScores + kRoundedScores * __builtin_fabsf(best));
  vi late = splat_int(-1), early = splat_int(-kMostPrompts), lane;  // last and first (negative) near scores of each lane
  for (int l = 0; l < W; l++) lane[l] = l;
  for (int64_t t = 0; t < a.prompts; t += W) {
    vf v = load(found + t);
    if (t + W > a.prompts) v = first_lanes(v, (int)(a.prompts - t), splat(__builtin_nanf("")));  // near to nothing
    const vi hit = v >= near, here = lane + (int32_t)t;
    late = hit ? here : late;
    early = (hit & (-here > early)) ? -here : early;
  }
  int32_t picked = largest<int32_t, W>(late);
  if (picked != -largest<int32_t, W>(early)) {  // hardly ever: decide exactly, the first of equal ones (of none: all is NaN)
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
  return picked;
}

void route_rows(const RouteArgs& a, int64_t first, int64_t last) {
  const int64_t hidden = (a.hidden + kRouteLanes - 1) / kRouteLanes * kRouteLanes;
  const int64_t prompts = (a.prompts + kRouteLanes - 1) / kRouteLanes * kRouteLanes;
  alignas(64) float inner[kRouteRows * kMostHidden], scores[kRouteRows * kMostPrompts];
  for (int64_t m = first; m < last; m += kRouteRows) {
    const int count = last - m < kRouteRows ? (int)(last - m) : kRouteRows;
    const float* from = a.scores ? a.scores + m * a.scores_stride : scores;
    if (!a.scores) {
      dense_rows(a.x + m * a.x_stride, a.x_stride, count, a.inputs, a.enter, a.enter_bias, hidden, inner);
      for (int64_t i = 0; i < count * hidden; i += W) store(inner + i, gelu(load(inner + i)));
      dense_rows(inner, hidden, count, a.hidden, a.leave, a.leave_bias, prompts, scores);
    }
    for (int r = 0; r < count; r++)
      a.picked[m + r] = pick(a, from + r * (a.scores ? a.scores_stride : prompts), a.uniform + (m + r) * a.prompts);
  }
}

}  // namespace
}  // namespace QM_ISA
