// integer_tile.h in plain C++.
#pragma once

namespace QM_ISA {
namespace {

constexpr int kMostPanels = 1;
constexpr int tile_rows(int) { return 1; }

void tile_sums(const Tile& t, int) {
  int32_t sums[kPanel];
  std::memcpy(sums, t.start, sizeof sums);
  const int8_t* w = t.weights;
  for (int64_t s = 0; s < t.count; s++) {
    const uint8_t* a = t.segments[s] + t.at[0];
    for (int64_t k = 0; k < t.steps; k++, a += 4, w += 4 * kPanel)
      for (int64_t lane = 0; lane < kPanel; lane++)
        for (int i = 0; i < 4; i++) sums[lane] += a[i] * w[4 * lane + i];
  }
  std::memcpy(t.sums, sums, sizeof sums);
}

}  // namespace
}  // namespace QM_ISA
