// Sums of products of a few rows of activations and a few panels of weights, for one instruction set.
//
// A panel holds kPanel output channels: for every tap and every four input channels, the four weights of channel 0, those
// of channel 1, ... A row of activations is a list of segments, stretches of bytes that lie anywhere (the rows of a map
// under a kernel); the segments of row r start `at[r]` bytes further than those of row 0.
#pragma once

#include <cstring>

#include "integer.h"
#include "simd.h"
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace QM_ISA {
namespace {

struct Tile {
  const uint8_t* const* segments;
  int64_t count, steps;  // segments; groups of four bytes in each
  const int64_t* at;     // of tile_rows() rows
  const int8_t* weights;
  int64_t panel;         // bytes between panels
  const int32_t* start;
  int32_t* sums;         // (rows, panels * kPanel)
  int64_t pair, zero;    // see PackedHead
};

QM_INLINE int32_t four_bytes(const void* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

}  // namespace
}  // namespace QM_ISA

#if defined(QM_TILE_AVX512)
#include "integer_tile_vnni.h"
#elif defined(QM_TILE_AVXVNNI)
#include "integer_tile_vnni.h"
#elif defined(__AVX2__)
#include "integer_tile_avx2.h"
#elif defined(__ARM_NEON)
#include "integer_tile_neon.h"
#else
#include "integer_tile_plain.h"
#endif
