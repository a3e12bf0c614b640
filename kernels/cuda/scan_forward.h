// The recurrence of a chunk from its start (states, outputs) or from its end (adjoint), and the carry from chunk to chunk.
#pragma once

#include "scan_rounded.h"

namespace qm {

constexpr int kAhead = 4;  // tokens that are read before the first of them is used

// Blocks on a multiprocessor: 64 registers hold the states and rates of up to 16 states without a spill; 96 the grid as well.
constexpr int kBlocks = N <= 16 ? (kRounded ? 5 : 8) : N <= 32 ? 4 : 2;

enum Pass { kSummary, kOutput, kAdjoint };

// One step of the recurrence of a channel. The decay is applied as h + m h: next to 1 it would round.
__device__ inline float recur(float h, float m, float add) { return h + fmaf(m, h, add); }

__host__ __device__ inline int64_t forward_floats(QmScan const& s) { return 2 * kTile * N + s.chunk; }

// kSummary: the state of each chunk from zero, and its sum of dt. kOutput: y, from the state that enters the chunk.
// kAdjoint: r <- exp(dt A) (r + C dy) from the last token to the first, from zero; where states are rounded, with the dy of
// those that pass it on (scan_adjoint.h).
template <int PASS>
__global__ void __launch_bounds__(kMostThreads, kBlocks) recurrence(QmScan const s) {
    QM_SHARED(shared);
    float* const b_tile = shared;
    float* const c_tile = b_tile + kTile * N;
    int* const pixels = reinterpret_cast<int*>(c_tile + kTile * N);
    Place const at(s);
    find_pixels(s, at, pixels);

    float a[N], h[N];
    bool const enters = PASS == kOutput && at.chunk > 0;
    QM_UNROLL
    for (int n = 0; n < N; ++n) {
        bool const used = n < at.state;
        a[n] = used ? kLog2e * s.A[(int64_t(at.k) * at.state + n) * s.channels + at.d] : 0.0f;
        h[n] = used && enters ? s.states[at.cell(s, at.chunk - 1, n)] : 0.0f;
    }
    int64_t const kd = int64_t(at.k) * s.channels + at.d;
    float const bias = s.bias ? s.bias[kd] : 0.0f;
    float const skip = PASS == kOutput && s.D ? s.D[kd] : 0.0f;
    Lane const from_delta(s.delta, at, at.d), from_second(PASS == kAdjoint ? s.dy : s.x, at, at.d);
    Lane const to_y(PASS == kOutput ? s.y : s.x, at, at.d, PASS == kOutput && s.float_y);
    bool const soft = s.softplus, float_y = s.float_y;
    float total = 0.0f;
    Rounding const rounding(s);

    int const tiles = (at.steps + kTile - 1) / kTile;
    for (int i = 0; i < tiles; ++i) {
        int const start = kTile * (PASS == kAdjoint ? tiles - 1 - i : i);
        __syncthreads();
        if (PASS != kAdjoint) stage(s.B, at, pixels + start, b_tile, N, 1);
        if (PASS != kSummary) stage(s.C, at, pixels + start, c_tile, N, 1);
        __syncthreads();
        QM_ROLLED
        for (int j = 0; j < kTile; j += kAhead) {
            float raw[kAhead], v[kAhead];
            int const first = PASS == kAdjoint ? kTile - kAhead - j : j;
            QM_UNROLL
            for (int u = 0; u < kAhead; ++u) {
                raw[u] = from_delta.read(pixels[start + first + u]);
                v[u] = from_second.read(pixels[start + first + u]);
            }
            QM_UNROLL
            for (int i = 0; i < kAhead; ++i) {
                int const u = PASS == kAdjoint ? kAhead - 1 - i : i, t = first + u;
                bool const used = start + t < at.steps;  // a token beyond the last changes no state
                float const step = step_size(raw[u] + bias, soft);
                float const dt = used ? step : 0.0f, in = used ? v[u] : 0.0f, dtx = dt * in;
                float4 const* const b4 = reinterpret_cast<float4 const*>(b_tile + t * N);
                float4 const* const c4 = reinterpret_cast<float4 const*>(c_tile + t * N);
                float y0 = skip * in, y1 = 0.0f;
                QM_UNROLL
                for (int g = 0; g < N / 4; ++g) {
                    float4 const b = PASS == kAdjoint ? float4{} : b4[g], c = PASS == kSummary ? float4{} : c4[g];
                    float const bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
                    QM_UNROLL
                    for (int e = 0; e < 4; ++e) {
                        int const n = 4 * g + e;
                        float const m = decay(dt * a[n]);
                        if (PASS == kAdjoint) {
                            float const r = fmaf(cs[e], in, h[n]);
                            h[n] = fmaf(r, m, r);
                            continue;
                        }
                        h[n] = recur(h[n], m, dtx * bs[e]);
                        if (PASS != kOutput) continue;
                        float const read = kRounded ? rounding(h[n]) : h[n];
                        (e & 1 ? y1 : y0) = fmaf(cs[e], read, e & 1 ? y1 : y0);
                    }
                }
                total += dt;
                if (PASS == kOutput && used && at.real) to_y.write(pixels[start + t], y0 + y1, float_y);
            }
        }
    }
    if (!at.real || (PASS == kOutput && at.chunks > 1)) return;
    float* const out = PASS == kAdjoint ? s.adjoint : s.states;
    QM_UNROLL
    for (int n = 0; n < N; ++n)
        if (n < at.state) out[at.cell(s, at.chunk, n)] = h[n];
    if (PASS != kOutput) s.sums[(at.pair * at.chunks + at.chunk) * s.channels + at.d] = total;
}

// In place: what a chunk adds, started from zero, becomes the state after it. One state of one channel per thread.
__global__ void carry(QmScan const s, float* states, int backwards) {
    constexpr int kDepth = 8;  // chunks that are read at once
    int const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= s.state * s.channels) return;
    int const chunks = chunks_of(s), channels = int(s.channels), d = i % channels;
    int64_t const pair = blockIdx.y, row = s.state * s.channels;
    float const a = kLog2e * s.A[(pair % s.directions) * row + i];
    float* const at = states + pair * chunks * row + i;
    float const* const sums = s.sums + pair * chunks * channels + d;
    float h = 0.0f;
    for (int start = 0; start < chunks; start += kDepth) {
        float add[kDepth], sum[kDepth];
        QM_UNROLL
        for (int u = 0; u < kDepth; ++u) {
            int const step = start + u < chunks ? start + u : chunks - 1, c = backwards ? chunks - 1 - step : step;
            add[u] = at[c * row];
            sum[u] = sums[int64_t(c) * channels];
        }
        QM_UNROLL
        for (int u = 0; u < kDepth; ++u) {
            if (start + u >= chunks) break;
            h = recur(h, decay(sum[u] * a), add[u]);
            at[(backwards ? chunks - 1 - start - u : start + u) * row] = h;
        }
    }
}

}  // namespace qm
