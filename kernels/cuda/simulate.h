// The kernels on the host, so that they are tested without a GPU: g++ -x c++ -DQM_SIMULATE scan.cu.
//
// Every thread of a block is a fiber. A barrier or a shuffle hands over to the next fiber, and each goes on when all have
// come as far; so all threads of a block must meet the same barriers and shuffles, as in these kernels they do. Shared
// memory holds NaN before each block.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define QM_SHARED(name) float* const name = qm::simulated::shared()
#define QM_UNROLL
#define QM_UNROLL_BY_8
#define QM_ROLLED

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};

// bfloat16 rounds to the nearest, ties to even
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 v) {
    uint32_t const wide = uint32_t(v.bits) << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}
inline __nv_bfloat16 __float2bfloat16(float v) {
    uint32_t wide;
    std::memcpy(&wide, &v, 4);
    if (v != v) return {0x7fff};
    return {uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
}

// float16, the same way
struct __half {
    uint16_t bits;
};
inline float __half2float(__half v) {
    int const exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
    float const size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? std::ldexp(float(1024 + fraction), exponent - 25)
                                      : std::ldexp(float(fraction), -24);
    return v.bits >> 15 ? -size : size;
}
inline __half __float2half(float v) {
    uint16_t const sign = std::signbit(v) ? 0x8000 : 0;
    float const size = std::fabs(v);
    if (v != v) return {0x7fff};
    if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
    if (size < 0x1p-14f) return {uint16_t(sign | int(std::nearbyint(std::ldexp(size, 24))))};
    int exponent;
    std::frexp(size, &exponent);  // in [2^(exponent - 1), 2^exponent)
    int const fraction = int(std::nearbyint(std::ldexp(size, 11 - exponent)));  // 1024 to 2048
    return {uint16_t(sign | ((exponent + 14) * 1024 + fraction - 1024))};
}
inline float __fdividef(float a, float b) { return a / b; }

inline dim3 threadIdx, blockIdx, blockDim;

namespace qm::simulated {

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline std::vector<float> memory, exchanged[2];
inline std::vector<unsigned> shuffles;

inline float* shared() {
    auto const address = reinterpret_cast<uintptr_t>(memory.data());
    return reinterpret_cast<float*>((address + 15) / 16 * 16);
}

inline void wait() {
    unsigned const self = threadIdx.x;
    swapcontext(&fibers[self].context, &scheduler);
}

inline void enter() {
    body();
    fibers[threadIdx.x].done = true;
}

inline void run_block(unsigned threads) {
    for (auto& v : memory) v = std::numeric_limits<float>::quiet_NaN();
    for (unsigned i = 0; i < threads; ++i) {
        fibers[i].done = false;
        getcontext(&fibers[i].context);
        fibers[i].context.uc_stack.ss_sp = fibers[i].stack.data();
        fibers[i].context.uc_stack.ss_size = fibers[i].stack.size();
        fibers[i].context.uc_link = &scheduler;
        makecontext(&fibers[i].context, enter, 0);
    }
    for (bool left = true; left;) {
        left = false;
        for (unsigned i = 0; i < threads; ++i) {
            if (fibers[i].done) continue;
            threadIdx.x = i;
            swapcontext(&scheduler, &fibers[i].context);
            left = left || !fibers[i].done;
        }
    }
}

}  // namespace qm::simulated

inline void __syncthreads() { qm::simulated::wait(); }

// Two buffers in turns: a thread comes back to one only after all have read it.
inline float __shfl_xor_sync(unsigned, float v, int mask) {
    using namespace qm::simulated;
    unsigned const self = threadIdx.x, turn = shuffles[self]++ % 2;
    exchanged[turn][self] = v;
    wait();
    return exchanged[turn][self ^ unsigned(mask)];
}

using cudaStream_t = void*;

namespace qm {

template <typename... Parameters, typename... Given>
int launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, int64_t bytes, cudaStream_t, Given... given) {
    using namespace simulated;
    if (fibers.size() < threads) {
        fibers.resize(threads);
        for (auto& fiber : fibers) fiber.stack.resize(1 << 16);
        shuffles.resize(threads);
        for (auto& buffer : exchanged) buffer.resize(threads);
    }
    memory.resize(size_t(bytes) / 4 + 8);
    blockDim = dim3(threads);
    body = [=] { kernel(given...); };
    for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y);
            for (auto& turn : shuffles) turn = 0;
            run_block(threads);
        }
    return 0;
}

inline int enter_device(int64_t) { return 0; }
inline int64_t shared_limit(int64_t) { return 1 << 20; }
inline char const* message(int) { return "simulated"; }

}  // namespace qm
