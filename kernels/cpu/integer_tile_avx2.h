// integer_tile.h with AVX2, a panel of two vectors. vpmaddubsw adds two products of bytes in 16 bits and saturates: it is
// used where the codes and weights of the layer rule that out (Tile::pair), and its sums are widened before they can
// overflow. Otherwise bytes are widened first.
#pragma once

namespace QM_ISA {
namespace {

constexpr int kMostPanels = 1;
constexpr int tile_rows(int) { return 6; }
constexpr int kRows = 6;

QM_INLINE __m256i load_bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }

// Sums of 16 bits, widened every `most` steps.
void tile_narrow(const Tile& t, int64_t most) {
  const __m256i one = _mm256_set1_epi16(1);
  __m256i sums[kRows][2] = {};
  int64_t left = most;
  bool begun = false;  // there are sums already
  const int8_t* w = t.weights;
  const auto widen = [&] {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) {
        int32_t* const to = t.sums + r * kPanel + 8 * v;
        const __m256i before = load_bytes(begun ? to : t.start + 8 * v);
        _mm256_storeu_si256((__m256i*)to, _mm256_add_epi32(before, _mm256_madd_epi16(sums[r][v], one)));
        sums[r][v] = _mm256_setzero_si256();
      }
    begun = true;
  };
  for (int64_t s = 0; s < t.count; s++) {
    const uint8_t* rows[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) rows[r] = t.segments[s] + t.at[r];
    for (int64_t k = 0; k < t.steps;) {
      const int64_t stop = k + left < t.steps ? k + left : t.steps;
      left -= stop - k;
      for (; k < stop; k++, w += 4 * kPanel) {
        const __m256i w0 = load_bytes(w), w1 = load_bytes(w + 32);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) {
          const __m256i a = _mm256_set1_epi32(four_bytes(rows[r] + 4 * k));
          sums[r][0] = _mm256_add_epi16(sums[r][0], _mm256_maddubs_epi16(a, w0));
          sums[r][1] = _mm256_add_epi16(sums[r][1], _mm256_maddubs_epi16(a, w1));
        }
      }
      if (!left) widen(), left = most;
    }
  }
  widen();
}

// Four products of bytes, as int32.
template <bool kPairs>
QM_INLINE __m256i products(__m256i a, __m256i w, __m256i one) {
  if (kPairs) return _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), one);
  const __m256i low = _mm256_set1_epi16(0xff);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, low), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
  return _mm256_add_epi32(even, _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(w, 8)));
}

// Sums of 32 bits of up to kHalf rows.
template <bool kPairs>
void tile_wide(const Tile& t) {
  constexpr int kHalf = 3;
  const __m256i one = _mm256_set1_epi16(1);
  for (int from = 0; from < kRows; from += kHalf) {
    __m256i sums[kHalf][2];
#pragma GCC unroll 4
    for (int r = 0; r < kHalf; r++) sums[r][0] = load_bytes(t.start), sums[r][1] = load_bytes(t.start + 8);
    const int8_t* w = t.weights;
    for (int64_t s = 0; s < t.count; s++) {
      const uint8_t* rows[kHalf];
#pragma GCC unroll 4
      for (int r = 0; r < kHalf; r++) rows[r] = t.segments[s] + t.at[from + r];
      for (int64_t k = 0; k < t.steps; k++, w += 4 * kPanel) {
        const __m256i w0 = load_bytes(w), w1 = load_bytes(w + 32);
#pragma GCC unroll 4
        for (int r = 0; r < kHalf; r++) {
          const __m256i a = _mm256_set1_epi32(four_bytes(rows[r] + 4 * k));
          sums[r][0] = _mm256_add_epi32(sums[r][0], products<kPairs>(a, w0, one));
          sums[r][1] = _mm256_add_epi32(sums[r][1], products<kPairs>(a, w1, one));
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kHalf; r++)
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) _mm256_storeu_si256((__m256i*)(t.sums + (from + r) * kPanel + 8 * v), sums[r][v]);
  }
}

void tile_sums(const Tile& t, int) {
  const int64_t most = INT16_MAX / t.pair;  // steps that 16 bits hold for sure
  if (most >= 4) tile_narrow(t, most);
  else if (most >= 1) tile_wide<true>(t);
  else tile_wide<false>(t);
}

}  // namespace
}  // namespace QM_ISA
