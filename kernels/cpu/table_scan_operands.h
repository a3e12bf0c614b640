// Operands of the scan on codes: values and codes of a stretch of channels.
#pragma once

#include "scan_walk.h"
#include "table_scan.h"

namespace QM_ISA {
namespace {

typedef uint8_t vb __attribute__((vector_size(QM_WIDTH)));

template <typename Integer>
QM_INLINE uint64_t whole(const uint8_t* p) {
  Integer v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// 1 to 8 bytes.
QM_INLINE uint64_t bytes_at(const uint8_t* p, int count) {
  if (count == 8) return whole<uint64_t>(p);
  if (count >= 4) return whole<uint32_t>(p) | whole<uint32_t>(p + count - 4) << 8 * (count - 4);
  return p[0] | (uint64_t)p[count / 2] << 8 * (count / 2) | (uint64_t)p[count - 1] << 8 * (count - 1);
}

// W bytes as integers. (GCC 12 takes a generic conversion apart.)
QM_INLINE vi widened(const uint8_t* p) {
#if defined(__AVX512F__) && QM_WIDTH == 16
  return (vi)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__) && QM_WIDTH == 8
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  vb bytes;
  std::memcpy(&bytes, p, W);
  return __builtin_convertvector(bytes, vi);
#endif
}

// The same of bytes in two words, the first in the lowest place.
QM_INLINE vi widened(uint64_t low, uint64_t high) {
#if defined(__AVX512F__) && QM_WIDTH == 16
  return (vi)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_set_epi64x((long long)high, (long long)low));
#elif defined(__AVX2__) && QM_WIDTH == 8
  (void)high;
  return (vi)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)low));
#else
  vi v;
  for (int l = 0; l < W; l++) v[l] = (int)((l < 8 ? low >> 8 * l : high >> 8 * (l - 8)) & 255);
  return v;
#endif
}

QM_INLINE vi codes_at(const uint8_t* p, int lanes) {
  if (lanes == W) return widened(p);
  if (lanes < 8) return widened(bytes_at(p, lanes), 0);
  return widened(whole<uint64_t>(p), lanes > 8 ? whole<uint64_t>(p + lanes - 8) >> 8 * (16 - lanes) : 0);
}

QM_INLINE vf floats_at(const float* p, int lanes) { return lanes == W ? load(p) : load(p, lanes); }

// An operand in one direction of one image.
struct Entrance {
  const Operand& from;
  int64_t place;
  vf step, offset, shift, lowest, highest;
  vi zero;

  Entrance(const Operand& operand, int64_t image, int64_t direction)
      : from(operand), place(image * operand.stride[0] + direction * operand.stride[3]) {
    if (operand.kind == kValues) return;
    const float* g = operand.grid + image * operand.grid_stride;
    step = splat(g[0]), offset = splat(g[1]), shift = offset / step, lowest = splat(g[2]), highest = splat(g[3]);
    zero = splat_int(1 << (operand.bits - 1));
  }

  // Codes (without zero) of values as quantizers give them: a true division, ties to even.
  QM_INLINE vf entering(vf v) const {
    const vf magic = splat(12582912.f);
    v = at_most(at_least((v + offset) / step, lowest), highest);
    return (v + magic) - magic;
  }

  // Values at element `at`; in the order of operations of the quantizers.
  template <int64_t kKind>
  QM_INLINE vf values(int64_t at, int lanes) const {
    at += place;
    if (kKind == kValues) return floats_at((const float*)from.data + at, lanes);
    const vf code = kKind == kCodes ? __builtin_convertvector(codes_at((const uint8_t*)from.data + at, lanes) - zero, vf)
                                    : entering(floats_at((const float*)from.data + at, lanes));
    return (code - shift) * step;
  }

  // The value of each stored code, for `levels` of them.
  void values_of_codes(int levels, float* out) const {
    for (int l = 0; l < levels; l++) out[l] = ((float)(l - zero[0]) - shift[0]) * step[0];
  }

  // Stored codes, 0 to 2^bits - 1 whatever bytes there are.
  template <int64_t kKind>
  QM_INLINE vi codes(int64_t at, int lanes) const {
    at += place;
    const vi code = kKind == kCodes
                        ? codes_at((const uint8_t*)from.data + at, lanes)
                        : __builtin_convertvector(entering(floats_at((const float*)from.data + at, lanes)), vi) + zero;
    return code & (zero + zero - 1);
  }

  // `count` stored codes from element `at`: where they lie, or in `scratch` (whole vectors) if they have to be made first.
  const uint8_t* bytes(int64_t at, int64_t count, uint8_t* scratch) const {
    if (from.kind == kCodes) return (const uint8_t*)from.data + place + at;
    for (int64_t c = 0; c < count; c += W) {
      const vb made = __builtin_convertvector(codes<kOnEntering>(at + c, count - c < W ? (int)(count - c) : W), vb);
      std::memcpy(scratch + c, &made, W);
    }
    return scratch;
  }
};

#if defined(__AVX512F__) && QM_WIDTH == 16
// The values of codes of 4 bits and fewer in one register: a permutation instead of arithmetic.
struct ValueTable {
  const uint8_t* data;
  vf value;

  explicit ValueTable(const Entrance& from) : data((const uint8_t*)from.from.data + from.place) {
    float of_code[W];
    from.values_of_codes(W, of_code);
    value = load(of_code);
  }

  // Values at element `at`, zero beyond `lanes`.
  QM_INLINE vf values(int64_t at, int lanes) const {
    const __mmask16 some = (__mmask16)((1u << lanes) - 1u);
    return (vf)_mm512_maskz_permutexvar_ps(some, (__m512i)codes_at(data + at, lanes), (__m512)value);
  }
};
#endif

// task(kind) with the kind as a constant: loops have no branch in them.
template <typename Task>
QM_INLINE void with_kind(int64_t kind, const Task& task) {
  if (kind == kCodes) return task(std::integral_constant<int64_t, kCodes>());
  if (kind == kOnEntering) return task(std::integral_constant<int64_t, kOnEntering>());
  task(std::integral_constant<int64_t, kValues>());
}

}  // namespace
}  // namespace QM_ISA
