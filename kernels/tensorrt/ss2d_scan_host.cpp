// The stages of ss2d_scan_body.h run on the host, so that the arithmetic of the plugin is tested without a GPU.
#include <vector>

#include "ss2d_scan_body.h"

extern "C" int qmambair_ss2d_scan_host(
    float const* x, float const* delta, float const* A, float const* B, float const* C, float const* D, float const* bias,
    float* y, int32_t batch, int32_t height, int32_t width, int32_t channels, int32_t directions, int32_t states,
    int32_t chunk, int32_t softplus, int32_t const* order) {
    using namespace qmambair;
    ScanShape s{batch, height, width, channels, directions, states, chunk, softplus, {}};
    for (int k = 0; k < directions && k < kMaxDirections; ++k) s.order[k] = order[k];
    if (!fits(s)) return 1;
    ScanInputs<float> const in{x, delta, B, C, A, D, bias};
    std::vector<float> state(s.cells() * states), sums(s.cells());
    for (int b = 0; b < batch; ++b)
        for (int k = 0; k < directions; ++k)
            for (int c = 0; c < s.chunks(); ++c)
                for (int d = 0; d < channels; ++d) summarize<kMaxStates>(s, in, state.data(), sums.data(), b, k, c, d);
    for (int b = 0; b < batch; ++b)
        for (int k = 0; k < directions; ++k)
            for (int d = 0; d < channels; ++d)
                for (int n = 0; n < states; ++n) carry(s, A, state.data(), sums.data(), b, k, d, n);
    for (int k = 0; k < directions; ++k)
        for (int b = 0; b < batch; ++b)
            for (int c = 0; c < s.chunks(); ++c)
                for (int d = 0; d < channels; ++d) emit<kMaxStates>(s, in, state.data(), y, b, k, c, d);
    return 0;
}
