// The scan whose read-out sees rounded states: y_t = C_t . Q(h_t) + D x_t; the recurrence stays as it is. QM_ROUNDED only.
//
//   Q(h) = (code - offset / step) step    code = round(clamp(v, lowest, highest))    v = (h + offset) / step
//
// Gradients (ops/lsq/README.md), with g = C_t dy_t and I = [lowest <= v <= highest]:
//
//   dh = g I    dstep = sum g (code - v I)    doffset = sum g (I - 1)
//
// A state that equals `lower` or `upper` sends g to itself and to that bound, to step and offset nothing (2DQuant, SPR2Q).
// So the adjoint depends on the states: a chunk runs forward first and keeps one bit for each of them.
#pragma once

#include <cmath>

#include "scan.h"

namespace qm {

constexpr bool kRounded = QM_ROUNDED;
constexpr int kBoundSums = 4;  // step, offset, lower, upper

// min and max that a NaN passes
__device__ inline float no_more(float v, float most) {
#ifdef QM_SIMULATE
    return v > most ? most : v;
#else
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(v), "f"(most));
    return r;
#endif
}
__device__ inline float no_less(float v, float least) {
#ifdef QM_SIMULATE
    return v < least ? least : v;
#else
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(v), "f"(least));
    return r;
#endif
}

// The grid, read from the device's memory: a recorded graph sees what a training step made of it.
struct Rounding {
    float step, inverse, offset, zero, lowest, highest, least, most, lower, upper;

    __device__ explicit Rounding(QmScan const& s) {
        if (!kRounded) return;
        step = *s.step, inverse = 1.0f / step;
        offset = s.offset ? *s.offset : 0.0f;
        zero = offset / step;
        lowest = float(s.lowest), highest = float(s.highest);
        least = (lowest - 0.25f) * step, most = (highest + 0.25f) * step;  // round to the outermost codes
        float const none = NAN;                     // equals nothing
        lower = s.lower ? *s.lower : none;
        upper = s.upper ? *s.upper : none;
    }

    // v, the bits of a division: the reciprocal's product corrected by its remainder (Markstein 1990). Outside of the levels
    // some v outside of them.
    __device__ float place(float h) const {
        float const x = no_more(no_less(h + offset, least), most), v = x * inverse;
        return fmaf(fmaf(-v, step, x), inverse, v);
    }

    // Ties to even: numbers near 1.5 2^23 have no fraction.
    __device__ static float code(float v) { return (v + 12582912.0f) - 12582912.0f; }

    __device__ float value(float code) const { return (code - zero) * step; }
    __device__ float operator()(float h) const { return value(code(place(h))); }
    __device__ bool inside(float v) const { return v >= lowest && v <= highest; }
    __device__ bool on_bound(float h) const { return h == lower || h == upper; }

    // Whether the state gets the gradient of its rounded value.
    __device__ bool passes(float h) const { return inside(place(h)) || on_bound(h); }

    // The same; adds the shares of a state with gradient g to the sums of the grid, and hands out its rounded value.
    __device__ bool passes(float h, float g, float (&sums)[kBoundSums], float& rounded) const {
        float const v = place(h), nearest = code(v);
        bool const in = inside(v), at_lower = h == lower, at_upper = h == upper, at = at_lower || at_upper;
        float const rest = at ? 0.0f : g;
        rounded = value(nearest);
        sums[0] = fmaf(rest, in ? nearest - v : nearest, sums[0]);
        sums[1] -= in ? 0.0f : rest;
        sums[2] += at_lower ? g : 0.0f;
        sums[3] += at_upper ? g : 0.0f;
        return in || at;
    }
};

// The sums of a block's threads, to the block's place in s.grid_shares. `shared`: kBoundSums for each warp, free to use.
__device__ inline void leave_sums(QmScan const& s, Place const& at, float (&sums)[kBoundSums], float* shared) {
    int const lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    QM_UNROLL
    for (int e = 0; e < kBoundSums; ++e) {
        QM_UNROLL
        for (int distance = kLanes / 2; distance > 0; distance /= 2)
            sums[e] += __shfl_xor_sync(0xffffffffu, sums[e], distance);
        if (lane == 0) shared[warp * kBoundSums + e] = sums[e];
    }
    __syncthreads();
    if (threadIdx.x >= kBoundSums) return;
    float total = 0.0f;
    for (int w = 0; w < int(s.warps); ++w) total += shared[w * kBoundSums + threadIdx.x];
    s.grid_shares[((at.pair * at.chunks + at.chunk) * blocks_of(s) + at.block) * kBoundSums + threadIdx.x] = total;
}

}  // namespace qm
