// Directional selective scan with gradients on a GPU: arguments, and which part of the work a block does.
//
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t      y_t = C_t . h_t + D x_t      dt = softplus(delta + bias)
//
// Every tensor is indexed at raster positions; a direction is an order of visiting them. A sequence is cut into chunks that
// run side by side. A block has up to four warps and owns one chunk of one (image, direction) pair and one channel per
// thread, so that the states of a channel are registers of one thread and B and C are read once for all its channels.
//
// QM_STATES (a multiple of 4, at least N), QM_ELEMENT (0 float, 1 bfloat16, 2 half) and QM_ROUNDED (1: the read-out sees
// rounded states, scan_rounded.h) are given by the compiler's command line. With QM_SIMULATE the same kernels are compiled
// for the host, thread by thread (simulate.h).
#pragma once

#include <cstdint>

#ifdef QM_SIMULATE
#include "simulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define QM_SHARED(name) extern __shared__ __align__(16) float name[]
#define QM_UNROLL _Pragma("unroll")
#define QM_UNROLL_BY_8 _Pragma("unroll 8")
#define QM_ROLLED _Pragma("unroll 1")
#endif

#ifndef QM_STATES
#define QM_STATES 16
#endif
#ifndef QM_ELEMENT
#define QM_ELEMENT 0
#endif
#ifndef QM_ROUNDED
#define QM_ROUNDED 0
#endif

// A map at raster positions: strides between images, tokens and directions in elements; channels (or states) are neighbours.
struct QmMap {
    void* data;
    int64_t image, token, direction;
};

// Mirrored by ops/ss2d_scan/cuda.py. Null where a tensor is absent or not needed by the call.
struct QmScan {
    int64_t batch, height, width, directions, channels, state;
    int64_t chunk;     // tokens, a multiple of 16
    int64_t warps;     // of a block
    int64_t softplus;  // 0: dt is delta + bias
    int64_t device;
    uint64_t ways;         // two bits per direction: 0 row-major, 1 column-major, 2 and 3 the same backwards
    int32_t const* order;  // or (directions, height * width) positions
    void* stream;
    QmMap x, delta, B, C, dy;
    float const *A, *D, *bias;  // (directions, state, channels), (directions, channels) twice
    float* sums;                // (pairs, chunks, channels): dt of each chunk
    float* states;              // (pairs, chunks, state, channels): after each chunk
    float* adjoint;             // the same for the adjoint that leaves a chunk; holds shares of dA afterwards
    QmMap y, dx, ddelta;
    QmMap dB, dC;            // one for each block of channels, `parts` elements apart
    int64_t parts;
    int64_t float_y, float_dx, float_dbc;  // these outputs are float32 whatever the inputs are
    float *dskip, *dbias;    // shares (pairs, chunks, channels)
    float *dA, *dD, *ddelta_bias;  // results (directions, channels, state), (directions, channels) twice
    float const *step, *offset, *lower, *upper;  // one number each, what states are rounded to; all but step may be null
    int64_t lowest, highest;                     // codes
    float* grid_shares;                          // (pairs, chunks, blocks, 4)
    float *dstep, *doffset, *dlower, *dupper;    // results, one number each; doffset, dlower and dupper may be null
};

namespace qm {

constexpr int N = QM_STATES;
constexpr int kTile = 16;  // tokens whose states the gradient keeps in registers
constexpr int kLanes = 32;
constexpr int kMostThreads = 128;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
static_assert(N % 4 == 0, "rows of states are read four at a time");

#if QM_ELEMENT == 0
using Element = float;
__device__ inline float value(float v) { return v; }
__device__ inline void put(float* at, float v) { *at = v; }
#elif QM_ELEMENT == 1
using Element = __nv_bfloat16;
__device__ inline float value(Element v) { return __bfloat162float(v); }
__device__ inline void put(Element* at, float v) { *at = __float2bfloat16(v); }
#else
using Element = __half;
__device__ inline float value(Element v) { return __half2float(v); }
__device__ inline void put(Element* at, float v) { *at = __float2half(v); }
#endif

// An output that is float32 or in the inputs' type.
__device__ inline void store(void* data, int64_t at, float v, bool wide) {
    if (wide) static_cast<float*>(data)[at] = v;
    else put(static_cast<Element*>(data) + at, v);
}

__host__ __device__ inline int chunks_of(QmScan const& s) { return int((s.height * s.width + s.chunk - 1) / s.chunk); }
__host__ __device__ inline int blocks_of(QmScan const& s) {
    return int((s.channels + s.warps * kLanes - 1) / (s.warps * kLanes));
}

// What a block works on. Lanes beyond the last channel repeat it with dt, x and dy of zero and write nothing.
struct Place {
    int block, chunk, chunks, image, k, d, first, steps, state;
    int64_t pair;
    bool real;

    __device__ explicit Place(QmScan const& s) {
        int const blocks = blocks_of(s);
        block = blockIdx.x % blocks;
        chunk = blockIdx.x / blocks;
        chunks = chunks_of(s);
        pair = blockIdx.y;
        image = int(pair / s.directions);
        k = int(pair % s.directions);
        d = block * blockDim.x + threadIdx.x;
        real = d < s.channels;
        if (!real) d = int(s.channels) - 1;
        first = chunk * int(s.chunk);
        int const left = int(s.height * s.width) - first;
        steps = left < int(s.chunk) ? left : int(s.chunk);
        state = int(s.state);
    }

    // Offset of state n of a chunk in (pairs, chunks, state, channels).
    __device__ int64_t cell(QmScan const& s, int chunk_, int n) const {
        return ((pair * chunks + chunk_) * state + n) * s.channels + d;
    }
};

// A channel (or state) of the tokens of a block's image and direction. Strides between tokens fit into 32 bits in bytes
// (`fits` in scan.cu), so that an address is one multiply-add.
struct Lane {
    char* base;
    int step, size;

    __device__ Lane(QmMap const& map, Place const& at, int channel, bool wide = false) {
        size = wide ? int(sizeof(float)) : int(sizeof(Element));
        base = static_cast<char*>(map.data) + (at.image * map.image + at.k * map.direction + channel) * size;
        step = int(map.token) * size;
    }
    __device__ char* address(int pixel) const { return base + int64_t(pixel) * step; }
    __device__ float read(int pixel) const { return value(*reinterpret_cast<Element const*>(address(pixel))); }
    __device__ void write(int pixel, float v, bool wide) const { store(address(pixel), 0, v, wide); }
};

// Raster positions of a chunk's tokens; the last one again for tokens beyond it.
__device__ inline void find_pixels(QmScan const& s, Place const& at, int* pixels) {
    int const length = int(s.height * s.width), height = int(s.height), width = int(s.width), chunk = int(s.chunk);
    int const way = int(s.ways >> (2 * (at.k & 31))) & 3;
    for (int i = threadIdx.x; i < chunk; i += blockDim.x) {
        int t = at.first + (i < at.steps ? i : at.steps - 1);
        if (s.order) {
            pixels[i] = s.order[int64_t(at.k) * length + t];
            continue;
        }
        if (way >= 2) t = length - 1 - t;
        pixels[i] = way & 1 ? (t % height) * width + t / height : t;
    }
}

// B or C of a tile of tokens, element (t, n) at t row + n column; zero beyond the states.
__device__ inline void stage(QmMap const& map, Place const& at, int const* pixels, float* tile, int row, int column) {
    Lane const from(map, at, 0);
    for (int i = threadIdx.x; i < kTile * N; i += blockDim.x) {
        int const t = i / N, n = i % N;
        Element const* const all = reinterpret_cast<Element const*>(from.address(pixels[t]));
        tile[t * row + n * column] = n < at.state ? value(all[n]) : 0.0f;
    }
}

__device__ inline float pow2(float z) {
#ifdef QM_SIMULATE
    return exp2f(z);
#else
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(z));
    return r;
#endif
}

// 2^z - 1 for z <= 0: its series where 2^z is near 1, relative error below 3e-6. `power`: 2^z, which the sum of that and 1
// would have lost digits of where it is near 0.
__device__ inline float decay(float z, float& power) {
    float const series = z * (0.69314718f + z * (0.24022651f + z * (0.055504109f + z * 0.0096181291f)));
    power = pow2(z);
    return fabsf(z) < 0.14f ? series : power - 1.0f;
}
__device__ inline float decay(float z) {
    float power;
    return decay(z, power);
}

// log(1 + exp(x)) = max(x, 0) + 2 atanh(s), s = e / (2 + e), e = exp(-|x|); atanh(s) / s as a polynomial in s^2, relative
// error 4e-9.
__device__ inline float softplus(float x) {
    float const e = pow2(-fabsf(x) * kLog2e);
    float const s = __fdividef(e, 2.0f + e);
    float const q = s * s;
    float const p = 0.33333161f + q * (0.20012298f + q * (0.13982579f + q * 0.14078889f));
    return fmaxf(x, 0.0f) + 2.0f * (s + s * q * p);
}

// Both are computed: a branch in the unrolled loops would cost more registers than that costs time.
__device__ inline float step_size(float raw, bool with_softplus) {
    float const soft = softplus(raw);
    return with_softplus ? soft : raw;
}

}  // namespace qm
