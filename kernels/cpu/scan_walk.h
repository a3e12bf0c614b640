// What forward and backward of the selective scan share. One vector holds QM_WIDTH neighbouring channels; the N states of
// these channels are N vectors, and a task walks all tokens of one image in one direction.
#pragma once

#include "scan.h"
#include "simd.h"

namespace QM_ISA {
namespace {

constexpr int kMaxState = 256;
constexpr float kLog2e = 1.44269504f;
constexpr float kLongestStep = 1e30f;  // of dt in exponents, which stay finite: exp(dt A) is 0 long before

// Where the pixels lie that a direction visits one after the other.
struct Walk {
  int64_t inner, length, width;
  const int32_t* path;
  bool columns, reverse;

  template <typename Args>
  Walk(const Args& a, int64_t direction)
      : length(a.height * a.width),
        width(a.width),
        path(a.path ? a.path + direction * length : nullptr),
        columns(!path && a.order[direction] & 1),
        reverse(!path && a.order[direction] & 2) {
    inner = columns ? a.height : a.width;
  }

  // Offsets of tokens [begin, end) in a map with these strides.
  void offsets(const int64_t* stride, int64_t begin, int64_t end, int64_t* out) const {
    if (path) return listed(stride, begin, end, out);
    const int64_t outer_stride = stride[columns ? 2 : 1], inner_stride = stride[columns ? 1 : 2];
    const int64_t first = reverse ? length - 1 - begin : begin, by = reverse ? -1 : 1;
    int64_t line = first / inner, place = first % inner;
    for (int64_t t = begin; t < end; t++) {
      *out++ = line * outer_stride + place * inner_stride;
      place += by;
      if (place == inner || place < 0) {
        line += by;
        place = reverse ? inner - 1 : 0;
      }
    }
  }

  // The same along a path.
  void listed(const int64_t* stride, int64_t begin, int64_t end, int64_t* out) const {
    if (stride[1] == width * stride[2]) {  // rows follow each other without a gap: no division
      for (int64_t t = begin; t < end; t++) *out++ = path[t] * stride[2];
    } else {
      for (int64_t t = begin; t < end; t++) *out++ = path[t] / width * stride[1] + path[t] % width * stride[2];
    }
  }

  // Raster positions of tokens [begin, end).
  void pixels(int64_t begin, int64_t end, int64_t* out) const {
    const int64_t raster[4] = {0, width, 1, 0};
    offsets(raster, begin, end, out);
  }
};

QM_INLINE const float* at(const float* p, const int64_t* stride, int64_t image, int64_t direction) {
  return p + image * stride[0] + direction * stride[3];
}

// Output maps are contiguous: (B, H, W, D) when the directions are merged, else (B, H, W, K, D).
template <typename Args>
QM_INLINE int64_t map_row(const Args& a) { return a.merge ? a.channels : a.directions * a.channels; }
template <typename Args>
QM_INLINE int64_t map_offset(const Args& a, int64_t direction) { return a.merge ? 0 : direction * a.channels; }

template <bool kFull>
QM_INLINE vf load_lanes(const float* p, int lanes) {
  return kFull ? load(p) : load(p, lanes);
}

template <bool kFull>
QM_INLINE void store_lanes(float* p, vf v, int lanes) {
  if (kFull)
    store(p, v);
  else
    store(p, v, lanes);
}

}  // namespace
}  // namespace QM_ISA
