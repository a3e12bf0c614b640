#include "ss2d_scan.h"

namespace qmambair {
namespace {

constexpr int kThreads = 128;

// grid: (channel blocks, chunks, batch * directions)
template <int MAX, bool TABLE, typename T>
__global__ void summarize_kernel(ScanShape s, ScanInputs<T> in, float* state, float* sums) {
    int const d = blockIdx.x * blockDim.x + threadIdx.x;
    if (d < s.channels)
        summarize<MAX, TABLE>(s, in, state, sums, blockIdx.z / s.directions, blockIdx.z % s.directions, blockIdx.y, d);
}

// one row of the tables per thread
__global__ void tabulate_kernel(ScanShape s, float const* A, float const* bias, float* steps, float* decays) {
    size_t const i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= s.rows()) return;
    int const kd = int(i / s.levels);
    tabulate(s, A, bias, steps, decays, kd / s.channels, kd % s.channels, int(i % s.levels));
}

// grid: (channel * state blocks, 1, batch * directions)
__global__ void carry_kernel(ScanShape s, float const* A, float* state, float const* sums) {
    int const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < s.channels * s.states) {
        carry(s, A, state, sums, blockIdx.z / s.directions, blockIdx.z % s.directions, i / s.states, i % s.states);
    }
}

// grid: (channel blocks, chunks, batch); one launch per direction, so that the sum needs no atomics
template <int MAX, bool TABLE, typename T>
__global__ void emit_kernel(ScanShape s, ScanInputs<T> in, float const* state, float* y, int k) {
    int const d = blockIdx.x * blockDim.x + threadIdx.x;
    if (d < s.channels) emit<MAX, TABLE>(s, in, state, y, blockIdx.z, k, blockIdx.y, d);
}

__global__ void to_half_kernel(float const* from, __half* to, size_t count) {
    size_t const i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] = __float2half(from[i]);
}

// states and sums of dt of the chunks, then the tables
size_t scratch_bytes(ScanShape const& s) { return (s.cells() + s.rows()) * (s.states + 1) * sizeof(float); }
size_t output_count(ScanShape const& s) { return size_t(s.batch) * s.length() * s.channels; }

template <int MAX, bool TABLE, typename T>
cudaError_t launch(ScanShape const& s, ScanInputs<T> in, float* y, void* workspace, cudaStream_t stream) {
    float* const state = static_cast<float*>(workspace);
    float* const sums = state + s.cells() * s.states;
    unsigned const blocks = (s.channels + kThreads - 1) / kThreads;
    unsigned const pairs = (s.channels * s.states + kThreads - 1) / kThreads;
    unsigned const sequences = s.batch * s.directions;
    if (TABLE) {
        float *const steps = sums + s.cells(), *const decays = steps + s.rows();
        unsigned const count = unsigned((s.rows() + kThreads - 1) / kThreads);
        tabulate_kernel<<<count, kThreads, 0, stream>>>(s, in.A, in.bias, steps, decays);
        in.steps = steps;
        in.decays = decays;
    }
    summarize_kernel<MAX, TABLE><<<dim3(blocks, s.chunks(), sequences), kThreads, 0, stream>>>(s, in, state, sums);
    carry_kernel<<<dim3(pairs, 1, sequences), kThreads, 0, stream>>>(s, in.A, state, sums);
    for (int k = 0; k < s.directions; ++k) {
        emit_kernel<MAX, TABLE><<<dim3(blocks, s.chunks(), s.batch), kThreads, 0, stream>>>(s, in, state, y, k);
    }
    return cudaGetLastError();
}

template <int MAX, typename T>
cudaError_t launch(ScanShape const& s, ScanInputs<T> const& in, float* y, void* workspace, cudaStream_t stream) {
    if (s.levels) return launch<MAX, true>(s, in, y, workspace, stream);
    return launch<MAX, false>(s, in, y, workspace, stream);
}

// The number of states is a template argument so that they live in registers.
template <typename T>
cudaError_t dispatch(ScanShape const& s, ScanInputs<T> const& in, float* y, void* workspace, cudaStream_t stream) {
    if (s.states <= 8) return launch<8>(s, in, y, workspace, stream);
    if (s.states <= 10) return launch<10>(s, in, y, workspace, stream);
    if (s.states <= 16) return launch<16>(s, in, y, workspace, stream);
    return launch<kMaxStates>(s, in, y, workspace, stream);
}

}  // namespace

size_t scan_workspace(ScanShape const& shape, bool half) {
    return scratch_bytes(shape) + (half ? output_count(shape) * sizeof(float) : 0);
}

cudaError_t scan_float(ScanShape const& shape, ScanInputs<float> const& in, float* y, void* workspace, cudaStream_t stream) {
    return dispatch(shape, in, y, workspace, stream);
}

cudaError_t scan_half(ScanShape const& shape, ScanInputs<__half> const& in, __half* y, void* workspace, cudaStream_t stream) {
    float* const sum = reinterpret_cast<float*>(static_cast<char*>(workspace) + scratch_bytes(shape));
    cudaError_t const status = dispatch(shape, in, sum, workspace, stream);
    if (status != cudaSuccess) return status;
    size_t const count = output_count(shape);
    to_half_kernel<<<unsigned((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(sum, y, count);
    return cudaGetLastError();
}

}  // namespace qmambair
