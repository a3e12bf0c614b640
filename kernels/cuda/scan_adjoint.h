// What only a gradient through rounded states has: the adjoint of a chunk from its end, where dy reaches those states alone
// that lie within the levels, and the sums for the grid.
#pragma once

#include <type_traits>

#include "scan_forward.h"

namespace qm {

// One bit for each state of a channel.
using Bits = std::conditional_t<
    N <= 8, uint8_t, std::conditional_t<N <= 16, uint16_t, std::conditional_t<N <= 32, uint32_t, uint64_t>>>;

__host__ __device__ inline int64_t adjoint_floats(QmScan const& s) {
    return kTile * N + s.chunk + s.chunk * s.warps * kLanes * int64_t(sizeof(Bits)) / 4;
}

// The recurrence forward from the state that enters the chunk, one bit kept for each state that passes its gradient on; then
// r <- exp(dt A) (r + C dy) from the last token to the first, from zero. Shares what `recurrence` does, and the bits.
__global__ void __launch_bounds__(kMostThreads, kBlocks) rounded_adjoint(QmScan const s) {
    QM_SHARED(shared);
    float* const tile = shared;  // of B, then of C
    int* const pixels = reinterpret_cast<int*>(tile + kTile * N);
    Bits* const bits = reinterpret_cast<Bits*>(pixels + s.chunk) + threadIdx.x;  // [token][thread]
    Place const at(s);
    find_pixels(s, at, pixels);

    float a[N], h[N];
    QM_UNROLL
    for (int n = 0; n < N; ++n) {
        bool const used = n < at.state;
        a[n] = used ? kLog2e * s.A[(int64_t(at.k) * at.state + n) * s.channels + at.d] : 0.0f;
        h[n] = used && at.chunk > 0 ? s.states[at.cell(s, at.chunk - 1, n)] : 0.0f;
    }
    float const bias = s.bias ? s.bias[int64_t(at.k) * s.channels + at.d] : 0.0f;
    Lane const from_delta(s.delta, at, at.d), from_x(s.x, at, at.d), from_dy(s.dy, at, at.d);
    bool const soft = s.softplus;
    Rounding const rounding(s);
    int const tiles = (at.steps + kTile - 1) / kTile, threads = blockDim.x;

    QM_ROLLED
    for (int i = 0; i < tiles; ++i) {
        __syncthreads();
        stage(s.B, at, pixels + kTile * i, tile, N, 1);
        __syncthreads();
        QM_ROLLED
        for (int t = kTile * i; t < kTile * (i + 1); ++t) {
            float const dt = step_size(from_delta.read(pixels[t]) + bias, soft), dtx = dt * from_x.read(pixels[t]);
            float const* const b = tile + (t - kTile * i) * N;
            Bits passing = 0;
            QM_UNROLL
            for (int n = 0; n < N; ++n) {
                h[n] = recur(h[n], decay(dt * a[n]), dtx * b[n]);
                passing |= Bits(rounding.passes(h[n])) << n;
            }
            bits[t * threads] = passing;
        }
    }

    QM_UNROLL
    for (int n = 0; n < N; ++n) h[n] = 0.0f;
    float total = 0.0f;
    QM_ROLLED
    for (int i = tiles - 1; i >= 0; --i) {
        __syncthreads();
        stage(s.C, at, pixels + kTile * i, tile, N, 1);
        __syncthreads();
        QM_ROLLED
        for (int t = kTile * (i + 1) - 1; t >= kTile * i; --t) {
            bool const used = t < at.steps;
            float const step = step_size(from_delta.read(pixels[t]) + bias, soft);
            float const dt = used ? step : 0.0f, dy = used ? from_dy.read(pixels[t]) : 0.0f;
            float const* const c = tile + (t - kTile * i) * N;
            Bits const passing = bits[t * threads];
            QM_UNROLL
            for (int n = 0; n < N; ++n) {
                float const r = fmaf(c[n], passing >> n & 1 ? dy : 0.0f, h[n]);
                h[n] = fmaf(r, decay(dt * a[n]), r);
            }
            total += dt;
        }
    }
    if (!at.real) return;
    QM_UNROLL
    for (int n = 0; n < N; ++n)
        if (n < at.state) s.adjoint[at.cell(s, at.chunk, n)] = h[n];
    s.sums[(at.pair * at.chunks + at.chunk) * s.channels + at.d] = total;
}

// The gradients of the grid from the shares of all blocks, in a fixed order, in float64: one block, a quarter of its threads
// for each of them.
__global__ void grid_sums(QmScan const s) {
    QM_SHARED(shared);
    double* const totals = reinterpret_cast<double*>(shared);
    int const thread = threadIdx.x, threads = blockDim.x;
    int64_t const count = s.batch * s.directions * chunks_of(s) * blocks_of(s) * kBoundSums;
    double total = 0.0;
    QM_UNROLL_BY_8
    for (int64_t i = thread; i < count; i += threads) total += s.grid_shares[i];
    totals[thread] = total;
    __syncthreads();
    float* const results[kBoundSums] = {s.dstep, s.doffset, s.dlower, s.dupper};
    QM_UNROLL
    for (int e = 0; e < kBoundSums; ++e) {
        if (thread != e || !results[e]) continue;
        double all = 0.0;
        for (int i = e; i < threads; i += kBoundSums) all += totals[i];
        *results[e] = float(all);
    }
}

}  // namespace qm
