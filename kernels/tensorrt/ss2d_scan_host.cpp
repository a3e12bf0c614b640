// The stages of ss2d_scan_body.h run on the host, so that the arithmetic of the plugin is tested without a GPU.
#include <vector>

#include "ss2d_scan_body.h"

namespace {

using namespace qmambair;

template <bool TABLE>
void run(ScanShape const& s, ScanInputs<float> const& in, float* y) {
    std::vector<float> state(s.cells() * s.states), sums(s.cells());
    for (int b = 0; b < s.batch; ++b)
        for (int k = 0; k < s.directions; ++k)
            for (int c = 0; c < s.chunks(); ++c)
                for (int d = 0; d < s.channels; ++d)
                    summarize<kMaxStates, TABLE>(s, in, state.data(), sums.data(), b, k, c, d);
    for (int b = 0; b < s.batch; ++b)
        for (int k = 0; k < s.directions; ++k)
            for (int d = 0; d < s.channels; ++d)
                for (int n = 0; n < s.states; ++n) carry(s, in.A, state.data(), sums.data(), b, k, d, n);
    for (int k = 0; k < s.directions; ++k)
        for (int b = 0; b < s.batch; ++b)
            for (int c = 0; c < s.chunks(); ++c)
                for (int d = 0; d < s.channels; ++d) emit<kMaxStates, TABLE>(s, in, state.data(), y, b, k, c, d);
}

}  // namespace

// `grid`: step, shift, lowest and highest code of delta's grid, or null.
extern "C" int qmambair_ss2d_scan_host(
    float const* x, float const* delta, float const* A, float const* B, float const* C, float const* D, float const* bias,
    float* y, int32_t batch, int32_t height, int32_t width, int32_t channels, int32_t directions, int32_t states,
    int32_t chunk, int32_t softplus, int32_t const* order, float const* grid) {
    ScanShape s{batch, height, width, channels, directions, states, chunk, softplus, {}, 0, 0, 0.0f, 0.0f};
    for (int k = 0; k < directions && k < kMaxDirections; ++k) s.order[k] = order[k];
    if (grid) set_grid(s, grid);
    if (!fits(s)) return 1;
    ScanInputs<float> in{x, delta, B, C, A, D, bias, nullptr, nullptr};
    if (!s.levels) {
        run<false>(s, in, y);
        return 0;
    }
    std::vector<float> steps(s.rows()), decays(s.rows() * states);
    for (int k = 0; k < directions; ++k)
        for (int d = 0; d < channels; ++d)
            for (int i = 0; i < s.levels; ++i) tabulate(s, A, bias, steps.data(), decays.data(), k, d, i);
    in.steps = steps.data();
    in.decays = decays.data();
    run<true>(s, in, y);
    return 0;
}
