// Gradients of the scan: those of one chunk, and sums of what blocks leave.
//
// With g_t = dL/dh_t and r_t = exp(dt_t A) g_t, which flows on to h_{t-1}:
//
//   g_t = C_t dy_t + r_{t+1}    dC_t = sum_d h_t dy_t    dB_t = sum_d g_t dt_t x_t    dx_t = D dy_t + dt_t sum_n g_t B_t
//   dA = sum_t dt_t r_t h_{t-1}    ddt_t = sum_n (A r_t h_{t-1} + g_t B_t x_t)
#pragma once

#include "scan_forward.h"

namespace qm {

constexpr int kPitch = kTile + 4;  // between the tokens of neighbouring states in a tile of B or C
constexpr int kGroup = 8;  // states whose shares of dB and dC wait in shared memory to be added up over warps

// Bytes of what `gradient` shares, in floats: states entering tiles and shares of dA; tiles of B and C; shares of dB and
// dC; pixels.
__host__ __device__ inline int64_t gradient_floats(QmScan const& s) {
    int64_t const threads = s.warps * kLanes, tiles = s.chunk / kTile;
    return tiles * N * threads + 2 * N * kPitch + kGroup * (s.warps * kLanes + 4) + s.chunk;
}

// Sums of 32 values over the lanes of a warp: lane l gets that of v[l]. In each round a lane keeps one half of what it has
// and gives the other away; a template, since a loop over halves would put v into memory.
template <int HALF = kLanes / 2>
__device__ inline float sum_over_lanes(float (&v)[kLanes]) {
    bool const upper = threadIdx.x & HALF;
    QM_UNROLL
    for (int i = 0; i < HALF; ++i) {
        float const keep = upper ? v[i + HALF] : v[i], give = upper ? v[i] : v[i + HALF];
        v[i] = keep + __shfl_xor_sync(0xffffffffu, give, HALF);
    }
    if constexpr (HALF > 1) return sum_over_lanes<HALF / 2>(v);
    return v[0];
}

__device__ inline void read_tile(float const* row, float (&out)[kTile]) {
    QM_UNROLL
    for (int i = 0; i < kTile / 4; ++i) {
        float4 const q = reinterpret_cast<float4 const*>(row)[i];
        out[4 * i] = q.x, out[4 * i + 1] = q.y, out[4 * i + 2] = q.z, out[4 * i + 3] = q.w;
    }
}

// A chunk from its last tile of 16 tokens to its first. The recurrence runs forward once more to find the state that enters
// each tile; within a tile one state n at a time, the tokens in registers, to the end and back.
__global__ void __launch_bounds__(kMostThreads, 3) gradient(QmScan const s) {
    QM_SHARED(shared);
    int const threads = blockDim.x, thread = threadIdx.x;
    int const warps = threads / kLanes, tiles_per_chunk = int(s.chunk) / kTile, row = warps * kLanes + 4;
    float* const slots = shared;  // [tile][n][thread]: entering tile + 1, later the adjoint that leaves it
    float* const da_sums = slots + (tiles_per_chunk - 1) * N * threads;  // [n][thread]
    float* const b_tile = da_sums + N * threads;
    float* const c_tile = b_tile + N * kPitch;
    float* const shares = c_tile + N * kPitch;  // [n of the group][warp][dB of 16 tokens, dC of 16 tokens]
    int* const pixels = reinterpret_cast<int*>(shares + kGroup * row);
    Place const at(s);
    find_pixels(s, at, pixels);
    __syncthreads();

    int64_t const kd = int64_t(at.k) * s.channels + at.d;
    float const bias = s.bias ? s.bias[kd] : 0.0f, skip = s.D ? s.D[kd] : 0.0f;
    float const* const A = s.A + int64_t(at.k) * at.state * s.channels + at.d;
    Lane const from_delta(s.delta, at, at.d), from_x(s.x, at, at.d), from_dy(s.dy, at, at.d);
    bool const soft = s.softplus, float_dx = s.float_dx;
    int const tiles = (at.steps + kTile - 1) / kTile, channels = int(s.channels);
    float const* const entering = at.chunk > 0 ? s.states + at.cell(s, at.chunk - 1, 0) : nullptr;
    float const* const following = at.chunk + 1 < at.chunks ? s.adjoint + at.cell(s, at.chunk + 1, 0) : nullptr;

    {
        float a[N], h[N];
        QM_UNROLL
        for (int n = 0; n < N; ++n) {
            bool const used = n < at.state;
            a[n] = used ? kLog2e * A[n * s.channels] : 0.0f;
            h[n] = used && entering ? entering[n * s.channels] : 0.0f;
            da_sums[n * threads + thread] = 0.0f;
        }
        for (int tile = 0; tile + 1 < tiles; ++tile) {
            int const start = tile * kTile;
            __syncthreads();
            stage(s.B, at, pixels + start, b_tile, N, 1);
            __syncthreads();
            QM_ROLLED
            for (int j = 0; j < kTile; j += kAhead) {
                float raw[kAhead], x[kAhead];
                QM_UNROLL
                for (int u = 0; u < kAhead; ++u) {
                    raw[u] = from_delta.read(pixels[start + j + u]);
                    x[u] = from_x.read(pixels[start + j + u]);
                }
                QM_UNROLL
                for (int u = 0; u < kAhead; ++u) {
                    float const dt = step_size(raw[u] + bias, soft), dtx = dt * x[u];
                    float4 const* const b4 = reinterpret_cast<float4 const*>(b_tile + (j + u) * N);
                    QM_UNROLL
                    for (int g = 0; g < N / 4; ++g) {
                        float4 const b = b4[g];
                        float const bs[4] = {b.x, b.y, b.z, b.w};
                        QM_UNROLL
                        for (int e = 0; e < 4; ++e)
                            h[4 * g + e] = recur(h[4 * g + e], decay(dt * a[4 * g + e]), dtx * bs[e]);
                    }
                }
            }
            QM_UNROLL
            for (int n = 0; n < N; ++n) slots[(tile * N + n) * threads + thread] = h[n];
        }
    }

    float dbias = 0.0f, dskip = 0.0f, grid_sums[kBoundSums] = {};
    Rounding const rounding(s);
    QM_ROLLED
    for (int tile = tiles - 1; tile >= 0; --tile) {
        int const start = tile * kTile, count = at.steps - start;
        float dt[kTile], dtx[kTile], dy[kTile], through_b[kTile], through_decay[kTile];
        QM_UNROLL
        for (int t = 0; t < kTile; ++t) {
            int const pixel = pixels[start + t];
            dt[t] = from_delta.read(pixel);
            dtx[t] = from_x.read(pixel);
            dy[t] = from_dy.read(pixel);
        }
        __syncthreads();
        stage(s.B, at, pixels + start, b_tile, 1, kPitch);
        stage(s.C, at, pixels + start, c_tile, 1, kPitch);
        QM_UNROLL
        for (int t = 0; t < kTile; ++t) {
            bool const used = t < count && at.real;
            float const step = step_size(dt[t] + bias, soft);
            dt[t] = used ? step : 0.0f;
            dtx[t] = used ? dtx[t] * dt[t] : 0.0f;
            dy[t] = used ? dy[t] : 0.0f;
            through_b[t] = through_decay[t] = 0.0f;
        }
        __syncthreads();
        // the state that enters the tile and the adjoint from behind it, state n at n steps
        bool const is_first = tile == 0, is_last = tile + 1 == tiles;
        float* const before = slots + (is_first ? 0 : (tile - 1) * N * threads) + thread;
        float const* h_from = is_first ? entering : before;
        float const* r_from = is_last ? following : slots + tile * N * threads + thread;
        int const h_step = is_first ? channels : threads, r_step = is_last ? channels : threads;
        float const* a_from = A;
        // of the next state, asked for while the present one is worked on: it takes hundreds of cycles to come
        float next_a = 0.0f, next_h = 0.0f, next_r = 0.0f;
        auto const fetch = [&](int n) {
            bool const real_n = n < at.state;  // rows of states are filled up to a multiple of four
            next_a = real_n ? *a_from : 0.0f;
            next_h = h_from && real_n ? *h_from : 0.0f;
            next_r = r_from && real_n ? *r_from : 0.0f;
            a_from += channels;
            if (h_from) h_from += h_step;
            if (r_from) r_from += r_step;
        };
        fetch(0);
        QM_ROLLED
        for (int base = 0; base < N; base += kGroup) {
            int const group = N - base < kGroup ? N - base : kGroup;
            QM_ROLLED
            for (int i = 0; i < group; ++i) {
                int const n = base + i;
                float const a = kLog2e * next_a;
                float h = next_h, r = next_r, m[kTile], decayed[kTile], b[kTile], v[kLanes];
                fetch(n + 1);
                read_tile(b_tile + n * kPitch, b);
                [[maybe_unused]] unsigned passing = 0;  // where states are rounded: a bit for each token
                QM_UNROLL
                for (int t = 0; t < kTile; ++t) {
                    float power;
                    m[t] = decay(dt[t] * a, power);
                    decayed[t] = power * h;
                    h = recur(h, m[t], dtx[t] * b[t]);
                    float read = h;
                    if (kRounded) {
                        float const to_read = c_tile[n * kPitch + t] * dy[t];
                        passing |= unsigned(rounding.passes(h, to_read, grid_sums, read)) << t;
                    }
                    v[kTile + t] = read * dy[t];
                }
                float c[kTile], da = 0.0f;
                read_tile(b_tile + n * kPitch, b);
                read_tile(c_tile + n * kPitch, c);
                QM_UNROLL
                for (int t = kTile - 1; t >= 0; --t) {
                    float const reaches = kRounded && !(passing >> t & 1) ? 0.0f : dy[t];
                    float const g = fmaf(c[t], reaches, r);
                    v[t] = g * dtx[t];
                    through_b[t] = fmaf(g, b[t], through_b[t]);
                    float const flow = g * decayed[t];
                    through_decay[t] = fmaf(flow, a, through_decay[t]);
                    da = fmaf(flow, dt[t], da);
                    r = fmaf(g, m[t], g);
                }
                if (!is_first) before[n * threads] = r;
                da_sums[n * threads + thread] += da;
                shares[i * row + thread] = sum_over_lanes(v);
            }
            __syncthreads();
            for (int i = thread; i < 2 * kTile * kGroup; i += threads) {
                int const n = i % kGroup, t = i / kGroup % kTile, is_c = i / (kGroup * kTile);
                if (base + n >= at.state || n >= group || t >= count) continue;
                float total = 0.0f;
                for (int w = 0; w < warps; ++w) total += shares[n * row + w * kLanes + is_c * kTile + t];
                QmMap const& map = is_c ? s.dC : s.dB;
                int64_t const to = at.image * map.image + pixels[start + t] * map.token + at.k * map.direction;
                store(map.data, at.block * s.parts + to + base + n, total, s.float_dbc);
            }
            __syncthreads();
        }
        Lane const to_dx(s.dx, at, at.d, float_dx), to_ddelta(s.ddelta, at, at.d);
        QM_UNROLL
        for (int t = 0; t < kTile; ++t) {
            bool const used = t < count && at.real;
            int const pixel = pixels[start + t];
            float const x = from_x.read(pixel);
            float const slope = -decay(-dt[t] * kLog2e);  // of softplus: 1 - exp(-dt)
            float const change = (kLn2 * through_decay[t] + through_b[t] * x) * (soft ? slope : 1.0f);
            dbias += used ? change : 0.0f;
            dskip = fmaf(dy[t], x, dskip);
            if (used) to_ddelta.write(pixel, change, false);
            if (used) to_dx.write(pixel, fmaf(dy[t], skip, through_b[t] * dt[t]), float_dx);
        }
    }
    if (kRounded) leave_sums(s, at, grid_sums, shares);
    if (!at.real) return;
    // the slot after this chunk was read by this thread alone; that of the first chunk by nobody
    int const share = at.chunk + 1 < at.chunks ? at.chunk + 1 : 0;
    for (int n = 0; n < at.state; ++n) s.adjoint[at.cell(s, share, n)] = da_sums[n * threads + thread];
    int64_t const own = (at.pair * at.chunks + at.chunk) * s.channels + at.d;
    if (s.dbias) s.dbias[own] = dbias;
    if (s.dskip) s.dskip[own] = dskip;
}

// dA, dD and the gradient of the bias from the shares of images and chunks, in a fixed order, in float64.
__global__ void parameters(QmScan const s) {
    int const rows = int(s.state) + 2, channels = int(s.channels), chunks = chunks_of(s);
    int const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= s.directions * rows * channels) return;
    int const d = i % channels, n = i / channels % rows, k = i / (channels * rows);
    bool const of_a = n < s.state;
    float const* const from = of_a ? s.adjoint : n == s.state ? s.dskip : s.dbias;
    if (!from) return;
    int64_t const stride = of_a ? s.state * s.channels : s.channels, first = of_a ? n * s.channels + d : d;
    double total = 0.0;
    for (int image = 0; image < s.batch; ++image) {
        float const* const at = from + (image * s.directions + k) * chunks * stride + first;
        QM_UNROLL_BY_8
        for (int c = 0; c < chunks; ++c) total += at[c * stride];
    }
    if (of_a) s.dA[(int64_t(k) * channels + d) * s.state + n] = float(total);
    else (n == s.state ? s.dD : s.ddelta_bias)[int64_t(k) * channels + d] = float(total);
}

// out[i] = the sum of `parts` neighbours `size` apart, in a fixed order; four at a time.
__global__ void add_up(float const* from, void* out, int64_t size, int64_t parts, bool wide) {
    int64_t const i = 4 * (int64_t(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i >= size) return;
    if (size % 4 == 0) {
        float4 total = *reinterpret_cast<float4 const*>(from + i);
        for (int64_t p = 1; p < parts; ++p) {
            float4 const q = *reinterpret_cast<float4 const*>(from + p * size + i);
            total.x += q.x, total.y += q.y, total.z += q.z, total.w += q.w;
        }
        if (wide || QM_ELEMENT == 0) {
            *reinterpret_cast<float4*>(static_cast<float*>(out) + i) = total;
            return;
        }
        float const all[4] = {total.x, total.y, total.z, total.w};
        for (int e = 0; e < 4; ++e) store(out, i + e, all[e], wide);
        return;
    }
    for (int64_t e = i; e < i + 4 && e < size; ++e) {
        float total = from[e];
        for (int64_t p = 1; p < parts; ++p) total += from[p * size + e];
        store(out, e, total, wide);
    }
}

}  // namespace qm
