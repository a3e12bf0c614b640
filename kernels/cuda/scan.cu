// The scan's C interface: launches on a stream, no synchronization, no memory of its own. Functions return CUDA's status.
#include <algorithm>

#include "scan_backward.h"
#if QM_ROUNDED
#include "scan_adjoint.h"
#endif

namespace qm {

#ifndef QM_SIMULATE
int enter_device(int64_t device) { return cudaSetDevice(int(device)); }

char const* message(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

// Bytes of shared memory a block may have; 0 where the device cannot be asked.
int64_t shared_limit(int64_t device) {
    int bytes = 0;
    return cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, int(device)) == cudaSuccess ? bytes : 0;
}

template <typename... Parameters, typename... Given>
int launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, int64_t bytes, cudaStream_t stream, Given... given) {
    if (bytes > 48 * 1024) {
        cudaError_t const status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
        if (status != cudaSuccess) return status;
    }
    kernel<<<grid, threads, size_t(bytes), stream>>>(given...);
    return cudaGetLastError();
}
#endif

namespace {

int64_t pairs(QmScan const& s) { return s.batch * s.directions; }
unsigned over(int64_t count, int64_t block) { return unsigned((count + block - 1) / block); }

// Whether the distance of neighbouring tokens in bytes fits into 32 bits.
bool near(QmMap const& map) { return map.token >= 0 && map.token <= INT32_MAX / 4; }

bool fits(QmScan const& s) {
    bool const sized = s.batch > 0 && s.height > 0 && s.width > 0 && s.directions > 0 && s.channels > 0 && s.state > 0 &&
                       s.state <= N && s.chunk > 0 && s.chunk % kTile == 0 && s.warps > 0 && s.warps * kLanes <= kMostThreads;
    return sized && s.height <= INT32_MAX / s.width && s.height * s.width <= INT32_MAX - s.chunk &&
           pairs(s) <= 65535 && int64_t(chunks_of(s)) * blocks_of(s) <= INT32_MAX && (s.order || s.directions <= 32) &&
           s.channels * (s.state + 2) * s.directions <= INT32_MAX && near(s.x) && near(s.delta) && near(s.B) && near(s.C) &&
           near(s.dy) && near(s.y) && near(s.dx) && near(s.ddelta) && bool(s.step) == kRounded;
}

#if QM_ROUNDED
constexpr auto adjoint = rounded_adjoint;
#else
constexpr auto adjoint = recurrence<kAdjoint>;
int64_t adjoint_floats(QmScan const& s) { return forward_floats(s); }
#endif

constexpr int kRefused = -1;
constexpr int kThreads = 128;

int carry_states(QmScan const& s, float* states, int backwards, cudaStream_t stream) {
    dim3 const grid(over(s.state * s.channels, kThreads), unsigned(pairs(s)));
    return launch(carry, grid, kThreads, 0, stream, s, states, backwards);
}

}  // namespace
}  // namespace qm

using namespace qm;

extern "C" {

#define QM_EXPORT __attribute__((visibility("default")))

QM_EXPORT int64_t qm_scan_struct() { return sizeof(QmScan); }

// Warps of a block so that the gradient's shared memory fits, at most `wanted`; 0 where one does not.
QM_EXPORT int64_t qm_scan_warps(int64_t wanted, int64_t chunk, int64_t device) {
    QmScan s{};
    s.chunk = chunk;
    int64_t const limit = shared_limit(device);
    for (s.warps = wanted; s.warps > 0 && 4 * std::max(gradient_floats(s), adjoint_floats(s)) > limit;) --s.warps;
    return s.warps;
}

QM_EXPORT char const* qm_scan_message(int status) {
    return status == kRefused ? "sizes that the kernels do not take" : message(status);
}

QM_EXPORT int qm_scan_forward(QmScan const* given) {
    QmScan const& s = *given;
    if (!fits(s)) return kRefused;
    if (int const status = enter_device(s.device)) return status;
    auto const stream = static_cast<cudaStream_t>(s.stream);
    unsigned const threads = unsigned(s.warps * kLanes);
    dim3 const grid(unsigned(chunks_of(s)) * blocks_of(s), unsigned(pairs(s)));
    int64_t const bytes = 4 * forward_floats(s);
    if (chunks_of(s) > 1) {
        if (int const status = launch(recurrence<kSummary>, grid, threads, bytes, stream, s)) return status;
        if (int const status = carry_states(s, s.states, 0, stream)) return status;
    }
    return launch(recurrence<kOutput>, grid, threads, bytes, stream, s);
}

QM_EXPORT int qm_scan_backward(QmScan const* given) {
    QmScan const& s = *given;
    if (!fits(s)) return kRefused;
    if (int const status = enter_device(s.device)) return status;
    auto const stream = static_cast<cudaStream_t>(s.stream);
    unsigned const threads = unsigned(s.warps * kLanes);
    dim3 const grid(unsigned(chunks_of(s)) * blocks_of(s), unsigned(pairs(s)));
    if (chunks_of(s) > 1) {
        if (int const status = launch(adjoint, grid, threads, 4 * adjoint_floats(s), stream, s)) return status;
        if (int const status = carry_states(s, s.adjoint, 1, stream)) return status;
    }
    if (int const status = launch(gradient, grid, threads, 4 * gradient_floats(s), stream, s)) return status;
#if QM_ROUNDED
    if (int const status = launch(grid_sums, dim3(1), kThreads, 8 * kThreads, stream, s)) return status;
#endif
    int64_t const count = s.directions * (s.state + 2) * s.channels;
    return launch(parameters, dim3(over(count, kThreads)), kThreads, 0, stream, s);
}

// out[i] = sum of from[i + p size] over p < parts; out is float32 where `wide`, in the type of the inputs elsewhere.
QM_EXPORT int qm_scan_add_up(
    float const* from, void* out, int64_t size, int64_t parts, int64_t wide, int64_t device, void* stream) {
    if (int const status = enter_device(device)) return status;
    dim3 const grid(over(size, 4 * kThreads));
    return launch(add_up, grid, kThreads, 0, static_cast<cudaStream_t>(stream), from, out, size, parts, bool(wide));
}

}  // extern "C"
