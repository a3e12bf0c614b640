// integer_tile.h with vpdpbusd: four products of unsigned and signed bytes added to an int32, without saturation. Vectors
// of 512 bits (a panel each) with AVX-512, of 256 (half a panel) with AVX-VNNI.
#pragma once

namespace QM_ISA {
namespace {

#if defined(QM_TILE_AVX512)
typedef __m512i Vector;
constexpr int kVectors = 1;  // of a panel
constexpr int kMostPanels = 4;
constexpr int tile_rows(int panels) { return panels == 4 ? 6 : 8; }

QM_INLINE Vector load_bytes(const void* p) { return _mm512_loadu_si512(p); }
QM_INLINE void store_bytes(void* p, Vector v) { _mm512_storeu_si512(p, v); }
QM_INLINE Vector broadcast(const void* p) { return _mm512_set1_epi32(four_bytes(p)); }
QM_INLINE Vector add_products(Vector sum, Vector a, Vector w) { return _mm512_dpbusd_epi32(sum, a, w); }
#else
typedef __m256i Vector;
constexpr int kVectors = 2;
constexpr int kMostPanels = 1;
constexpr int tile_rows(int) { return 6; }

QM_INLINE Vector load_bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
QM_INLINE void store_bytes(void* p, Vector v) { _mm256_storeu_si256((__m256i*)p, v); }
QM_INLINE Vector broadcast(const void* p) { return _mm256_set1_epi32(four_bytes(p)); }
QM_INLINE Vector add_products(Vector sum, Vector a, Vector w) { return _mm256_dpbusd_avx_epi32(sum, a, w); }
#endif

template <int kPanels>
void tile_sized(const Tile& t) {
  constexpr int R = tile_rows(kPanels), V = kPanels * kVectors;
  Vector sums[R][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    const Vector start = load_bytes(t.start + v * kPanel / kVectors);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sums[r][v] = start;
  }
  const int8_t* w = t.weights;
  for (int64_t s = 0; s < t.count; s++) {
    const uint8_t* rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) rows[r] = t.segments[s] + t.at[r];
    for (int64_t k = 0; k < t.steps; k++, w += 4 * kPanel) {
      Vector weights[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++)
        weights[v] = load_bytes(w + v / kVectors * t.panel + v % kVectors * (int)sizeof(Vector));
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Vector a = broadcast(rows[r] + 4 * k);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sums[r][v] = add_products(sums[r][v], a, weights[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store_bytes(t.sums + (r * V + v) * kPanel / kVectors, sums[r][v]);
}

void tile_sums(const Tile& t, int panels) {
#if defined(QM_TILE_AVX512)
  if (panels == 4) return tile_sized<4>(t);
  if (panels == 3) return tile_sized<3>(t);
  if (panels == 2) return tile_sized<2>(t);
#endif
  (void)panels;
  tile_sized<1>(t);
}

}  // namespace
}  // namespace QM_ISA
