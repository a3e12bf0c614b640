// The arithmetic of the directional selective scan, one function per stage, for CUDA and for the host.
//
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t      y_t = C_t . h_t + D x_t      dt = softplus(delta + delta_bias)
//
// Everything is indexed at the raster position of the pixel: a direction is only an order of visiting pixels, so no
// permuted copy of the feature map exists. A direction's sequence is cut into chunks that run side by side:
//
//   summarize  state at the end of each chunk when it starts from zero, and the sum of its dt
//   carry      state at the start of each chunk; a chunk decays a state by exp(A * sum of its dt) exactly
//   emit       the outputs of each chunk from its true starting state
//
// Where delta lies on a constant grid, `tabulate` makes the steps and decays of its codes first, and a token looks them up
// instead of computing one exponential per state. The table holds exp(dt A) - 1, which keeps the digits of slow decays.
//
// State and accumulation are float32 whatever the input type. exp(dt A) <= 1 since A < 0, so nothing overflows.
//
// Layouts (contiguous): x, y (batch, pixels, channels); delta (batch, pixels, directions, channels);
// B, C (batch, pixels, directions, states); A (directions, channels, states); D, bias (directions, channels).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define SS2D_BOTH __host__ __device__ inline
#else
#define SS2D_BOTH inline
#endif

// loops over states are unrolled on the GPU, so that the states stay in registers
#if defined(__CUDA_ARCH__)
#define SS2D_UNROLL _Pragma("unroll")
#else
#define SS2D_UNROLL
#endif

namespace qmambair {

constexpr int kMaxDirections = 8;
constexpr int kMaxStates = 64;
constexpr int kMaxLevels = 256;

enum Order : int32_t { kRow = 0, kColumn = 1, kRowReversed = 2, kColumnReversed = 3 };

struct ScanShape {
    int batch, height, width, channels, directions, states;
    int chunk;         // pixels of one chunk
    int softplus;      // 0: delta is used as it is
    int order[kMaxDirections];
    // the grid of delta, (lowest + i) step - shift; levels 0: delta is looked up nowhere
    int levels, lowest;
    float step, shift;

    SS2D_BOTH int length() const { return height * width; }
    SS2D_BOTH int chunks() const { return (length() + chunk - 1) / chunk; }
    // number of (batch, direction, chunk, channel) cells
    SS2D_BOTH size_t cells() const { return size_t(batch) * directions * chunks() * channels; }
    // number of rows of the tables
    SS2D_BOTH size_t rows() const { return size_t(directions) * channels * levels; }
};

// The grid of delta from its step, shift, lowest and highest code; levels becomes -1 (`fits` refuses it) where they are none.
inline void set_grid(ScanShape& s, float const* grid) {
    float const levels = grid[3] - grid[2] + 1.0f;
    bool const sound = levels >= 1.0f && levels <= float(kMaxLevels) && std::fabs(grid[2]) <= 65536.0f && std::isfinite(grid[1]);
    s.step = grid[0];
    s.shift = grid[1];
    s.lowest = sound ? int(grid[2]) : 0;
    s.levels = sound ? int(levels) : -1;
}

// Whether a scan can run: sizes and orders may come from a file, and index arrays and memory.
inline bool fits(ScanShape const& s) {
    bool const sized = s.batch > 0 && s.height > 0 && s.width > 0 && s.channels > 0 && s.directions > 0 &&
                       s.directions <= kMaxDirections && s.states > 0 && s.states <= kMaxStates && s.chunk > 0 &&
                       s.levels >= 0 && s.levels <= kMaxLevels && (s.levels == 0 || s.step > 0.0f);
    if (!sized || int64_t(s.height) * s.width > INT32_MAX - s.chunk) return false;
    for (int k = 0; k < s.directions; ++k)
        if (s.order[k] < kRow || s.order[k] > kColumnReversed) return false;
    return true;
}

// Raster index of the t-th pixel that direction k visits.
SS2D_BOTH int visited(ScanShape const& s, int k, int t) {
    int const order = s.order[k];
    if (order == kRowReversed || order == kColumnReversed) t = s.length() - 1 - t;
    if (order == kRow || order == kRowReversed) return t;
    return (t % s.height) * s.width + t / s.height;
}

SS2D_BOTH float step_size(float delta, float bias, int softplus) {
    float const v = delta + bias;
    if (!softplus) return v;
    return v > 20.0f ? v : log1pf(expf(v));  // log1p(exp(v)) - v < 2e-9 there
}

// Index of a cell: channels run fastest, so neighbouring threads touch neighbouring memory.
SS2D_BOTH size_t cell(ScanShape const& s, int b, int k, int c, int d) {
    return ((size_t(b) * s.directions + k) * s.chunks() + c) * s.channels + d;
}

template <typename T>
struct ScanInputs {
    T const* x;
    T const* delta;
    T const* B;
    T const* C;
    float const* A;
    float const* D;
    float const* bias;
    // by direction, channel and code of delta: dt, and a row exp(dt A) - 1 of all states; null where levels is 0
    float const* steps;
    float const* decays;
};

// Index of a code in the tables; delta may be rounded to FP16, and NaN or a stray value must not leave the table.
SS2D_BOTH int level(ScanShape const& s, float delta) {
    float const code = rintf((delta + s.shift) / s.step) - float(s.lowest);
    return int(fminf(fmaxf(code, 0.0f), float(s.levels - 1)));
}

// One row of the tables.
SS2D_BOTH void tabulate(ScanShape const& s, float const* A, float const* bias, float* steps, float* decays, int k, int d, int i) {
    size_t const kd = size_t(k) * s.channels + d, row = kd * s.levels + i;
    float const dt = step_size(float(s.lowest + i) * s.step - s.shift, bias ? bias[kd] : 0.0f, s.softplus);
    steps[row] = dt;
    for (int n = 0; n < s.states; ++n) decays[row * s.states + n] = expm1f(dt * A[kd * s.states + n]);
}

// Walks one chunk of one channel from state h; calls sink(pixel, y) where y is wanted. Returns the sum of dt.
template <int MAX, bool TABLE, typename T, typename Sink>
SS2D_BOTH float walk(ScanShape const& s, ScanInputs<T> const& in, int b, int k, int c, int d, float (&h)[MAX], Sink sink) {
    int const begin = c * s.chunk, end = begin + s.chunk < s.length() ? begin + s.chunk : s.length();
    size_t const kd = size_t(k) * s.channels + d;
    float a[MAX];
    SS2D_UNROLL
    for (int n = 0; n < MAX; ++n) a[n] = n < s.states ? in.A[kd * s.states + n] : 0.0f;
    float const bias = in.bias ? in.bias[kd] : 0.0f, skip = in.D ? in.D[kd] : 0.0f;
    float total = 0.0f;
    for (int t = begin; t < end; ++t) {
        int const p = visited(s, k, t);
        size_t const pixel = size_t(b) * s.length() + p, pk = pixel * s.directions + k;
        float const x = float(in.x[pixel * s.channels + d]);
        float const delta = float(in.delta[pk * s.channels + d]);
        size_t const row = TABLE ? kd * s.levels + level(s, delta) : 0;
        float const dt = TABLE ? in.steps[row] : step_size(delta, bias, s.softplus);
        float const* const decays = TABLE ? in.decays + row * s.states : nullptr;
        total += dt;
        T const* const B = in.B + pk * s.states;
        T const* const C = in.C + pk * s.states;
        float y = skip * x;
        float const dtx = dt * x;
        SS2D_UNROLL
        for (int n = 0; n < MAX; ++n) {
            if (n < s.states) {
                if (TABLE) h[n] += decays[n] * h[n] + dtx * float(B[n]);
                else h[n] = expf(dt * a[n]) * h[n] + dtx * float(B[n]);
                y += float(C[n]) * h[n];
            }
        }
        sink(pixel * s.channels + d, y);
    }
    return total;
}

struct NoSink {
    SS2D_BOTH void operator()(size_t, float) const {}
};

struct AddSink {
    float* y;
    bool first;  // the first direction writes, the others add: the order of summation never changes
    SS2D_BOTH void operator()(size_t at, float value) const { y[at] = first ? value : y[at] + value; }
};

// state: (cells, states), sums: (cells)
template <int MAX, bool TABLE, typename T>
SS2D_BOTH void summarize(ScanShape const& s, ScanInputs<T> const& in, float* state, float* sums, int b, int k, int c, int d) {
    float h[MAX];
    SS2D_UNROLL
    for (int n = 0; n < MAX; ++n) h[n] = 0.0f;
    size_t const at = cell(s, b, k, c, d);
    sums[at] = walk<MAX, TABLE>(s, in, b, k, c, d, h, NoSink());
    SS2D_UNROLL
    for (int n = 0; n < MAX; ++n) {
        if (n < s.states) state[at * s.states + n] = h[n];
    }
}

// In place: the end states of chunks become their start states.
SS2D_BOTH void carry(ScanShape const& s, float const* A, float* state, float const* sums, int b, int k, int d, int n) {
    float const a = A[(size_t(k) * s.channels + d) * s.states + n];
    float h = 0.0f;
    for (int c = 0; c < s.chunks(); ++c) {
        size_t const at = cell(s, b, k, c, d);
        float const end = state[at * s.states + n];
        state[at * s.states + n] = h;
        h = expf(a * sums[at]) * h + end;
    }
}

template <int MAX, bool TABLE, typename T>
SS2D_BOTH void emit(ScanShape const& s, ScanInputs<T> const& in, float const* state, float* y, int b, int k, int c, int d) {
    float h[MAX];
    size_t const at = cell(s, b, k, c, d) * s.states;
    SS2D_UNROLL
    for (int n = 0; n < MAX; ++n) h[n] = n < s.states ? state[at + n] : 0.0f;
    walk<MAX, TABLE>(s, in, b, k, c, d, h, AddSink{y, k == 0});
}

}  // namespace qmambair
