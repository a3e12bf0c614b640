// integer_tile.h with NEON. Both operands are signed here: a code u of 7 bits or fewer is a signed byte as it is, one of 8
// bits has its upper bit turned, which makes it u - 128 = q: sums of these start at zero.
#pragma once

namespace QM_ISA {
namespace {

constexpr int kMostPanels = 1;
constexpr int kVectors = 4;  // of a panel
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int tile_rows(int) { return 6; }
#else
constexpr int tile_rows(int) { return 3; }
#endif

template <bool kTurned>
void tile_signed(const Tile& t) {
  constexpr int R = tile_rows(1);
  int32x4_t starts[kVectors];
  for (int v = 0; v < kVectors; v++) starts[v] = kTurned ? vdupq_n_s32(0) : vld1q_s32(t.start + 4 * v);
#if defined(__ARM_FEATURE_DOTPROD)
  int32x4_t sums[R][kVectors];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < kVectors; v++) sums[r][v] = starts[v];
#else
  int32x4_t sums[R][2 * kVectors];  // of the first and the second two channels of a vector, two sums each
  for (int r = 0; r < R; r++)
    for (int v = 0; v < 2 * kVectors; v++) sums[r][v] = vdupq_n_s32(0);
#endif
  const int8_t* w = t.weights;
  for (int64_t s = 0; s < t.count; s++) {
    const uint8_t* rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) rows[r] = t.segments[s] + t.at[r];
    for (int64_t k = 0; k < t.steps; k++, w += 4 * kPanel) {
      int8x16_t weights[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) weights[v] = vld1q_s8(w + 16 * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        int32_t four = four_bytes(rows[r] + 4 * k);
        if (kTurned) four ^= (int32_t)0x80808080;
        const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(four));
#if defined(__ARM_FEATURE_DOTPROD)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) sums[r][v] = vdotq_s32(sums[r][v], weights[v], a);
#else
        const int8x8_t half = vget_low_s8(a);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) {
          sums[r][2 * v] = vpadalq_s16(sums[r][2 * v], vmull_s8(vget_low_s8(weights[v]), half));
          sums[r][2 * v + 1] = vpadalq_s16(sums[r][2 * v + 1], vmull_s8(vget_high_s8(weights[v]), half));
        }
#endif
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
#if defined(__ARM_FEATURE_DOTPROD)
      vst1q_s32(t.sums + r * kPanel + 4 * v, sums[r][v]);
#else
      const int32x4_t all = vpaddq_s32(sums[r][2 * v], sums[r][2 * v + 1]);
      vst1q_s32(t.sums + r * kPanel + 4 * v, vaddq_s32(starts[v], all));
#endif
    }
}

void tile_sums(const Tile& t, int) {
  if (t.zero == 128) tile_signed<true>(t);
  else tile_signed<false>(t);
}

}  // namespace
}  // namespace QM_ISA
