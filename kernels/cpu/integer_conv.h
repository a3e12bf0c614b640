// Convolutions of codes: the rows of the map that an output row needs are kept, padded, in a ring; the products run over
// them directly.
#pragma once

#include "integer_kernels.h"

namespace QM_ISA {
namespace {

constexpr int64_t kMostTaps = 15;  // of a kernel, each way
constexpr int kPixels = 4;         // neighbouring pixels that a depthwise convolution does at once

// The padded rows of one image.
struct Ring {
  const IntegerArgs& a;
  const CodeGrid grid;
  int64_t depth, pixel, width, slots, image;  // bytes of one group, of a pixel; pixels of a row; rows kept
  uint8_t *rows, *empty;
  int64_t* held;  // row of the map in each slot

  static int64_t group_depth(const IntegerArgs& a, bool depthwise) {
    return depthwise ? 1 : padded(a.in / a.groups, 4);
  }
  static int64_t row_pixels(const IntegerArgs& a) {
    // whole groups of kPixels are read
    const int64_t last = padded(a.out_width, kPixels) - 1, right = last * a.stride[1] + (a.kernel[1] - 1) * a.dilation[1] + 1;
    return right > a.width + a.padding[1] ? right : a.width + a.padding[1];
  }
  // rows from the first under a kernel to the last: no two of them share a slot
  static int64_t slot_count(const IntegerArgs& a) { return (a.kernel[0] - 1) * a.dilation[0] + 1; }
  static int64_t scratch(const IntegerArgs& a, bool depthwise) {
    return Scratch::size<uint8_t>((slot_count(a) + 1) * row_pixels(a) * a.groups * group_depth(a, depthwise) + 64) +
           Scratch::size<int64_t>(slot_count(a));
  }

  Ring(const IntegerArgs& a, Scratch& memory, int64_t image, int64_t index, bool depthwise)
      : a(a), grid(a.x.grid + 4 * index, a.x.zero), image(image) {
    depth = group_depth(a, depthwise), pixel = a.groups * depth, width = row_pixels(a);
    slots = slot_count(a);
    rows = memory.take<uint8_t>((slots + 1) * width * pixel + 64);  // vectors of a depthwise kernel read into what follows
    std::memset(rows, (int)a.x.zero, (slots + 1) * width * pixel + 64);
    empty = rows + slots * width * pixel;
    held = memory.take<int64_t>(slots);
    for (int64_t s = 0; s < slots; s++) held[s] = -1;
  }

  // Row y of the map, padded; rows above and below it are empty. It stays while the kernel covers it.
  const uint8_t* row(int64_t y) {
    if (y < 0 || y >= a.height) return empty;
    const int64_t slot = y % slots;
    uint8_t* const to = rows + slot * width * pixel;
    if (held[slot] == y) return to;
    held[slot] = y;
    const int64_t per_group = a.in / a.groups;
    if (a.x.stride == a.in && pixel == a.in) {
      take_row(a.x, grid, (image * a.height + y) * a.width * a.in, a.width * a.in, to + a.padding[1] * pixel);
      return to;
    }
    for (int64_t x = 0; x < a.width; x++) {
      const int64_t from = ((image * a.height + y) * a.width + x) * a.x.stride;
      uint8_t* const at = to + (a.padding[1] + x) * pixel;
      if (depth == per_group) take_row(a.x, grid, from, a.in, at);
      else
        for (int64_t g = 0; g < a.groups; g++) take_row(a.x, grid, from + g * per_group, per_group, at + g * depth);
    }
    return to;
  }
};

// Last terms of the pixels of a row: one array for each set of columns of the kernel that lies inside the map.
struct Borders {
  const IntegerArgs& a;
  const Weights& w;
  int64_t sets, span;  // floats of one array
  int32_t* set_of;     // (out_width)
  uint8_t* columns;    // (sets, kernel width)
  float* terms;
  uint8_t rows[kMostTaps];
  bool known;

  static int64_t most_sets(const IntegerArgs& a) {
    const int64_t sets = 2 * a.kernel[1] + 1;  // columns enter on the left and leave on the right
    return sets * sets < a.out_width ? sets * sets : a.out_width;
  }
  static int64_t floats(const IntegerArgs& a) {
    const PackedHead& h = *(const PackedHead*)a.blob;
    return (h.depthwise ? 1 : h.groups) * (int64_t)h.lanes + 2 * W;
  }
  static int64_t scratch(const IntegerArgs& a) {
    if (!a.finish.sums) return 0;
    return Scratch::size<int32_t>(a.out_width) + Scratch::size<uint8_t>(most_sets(a) * a.kernel[1]) +
           Scratch::size<float>(most_sets(a) * floats(a));
  }

  Borders(const IntegerArgs& a, const Weights& w, Scratch& memory) : a(a), w(w), sets(0), span(floats(a)), known(false) {
    if (!a.finish.sums) return;
    set_of = memory.take<int32_t>(a.out_width);
    columns = memory.take<uint8_t>(most_sets(a) * a.kernel[1]);
    terms = memory.take<float>(most_sets(a) * span);
    std::memset(terms, 0, most_sets(a) * span * sizeof(float));
    for (int64_t x = 0; x < a.out_width; x++) {
      uint8_t inside[kMostTaps];
      for (int64_t j = 0; j < a.kernel[1]; j++) {
        const int64_t at = x * a.stride[1] - a.padding[1] + j * a.dilation[1];
        inside[j] = at >= 0 && at < a.width;
      }
      int64_t set = 0;
      while (set < sets && std::memcmp(columns + set * a.kernel[1], inside, a.kernel[1])) set++;
      if (set == sets) std::memcpy(columns + sets++ * a.kernel[1], inside, a.kernel[1]);
      set_of[x] = (int32_t)set;
    }
  }

  void enter(int64_t y) {
    if (!a.finish.sums) return;
    uint8_t inside[kMostTaps];
    for (int64_t i = 0; i < a.kernel[0]; i++) {
      const int64_t at = y * a.stride[0] - a.padding[0] + i * a.dilation[0];
      inside[i] = at >= 0 && at < a.height;
    }
    if (known && !std::memcmp(rows, inside, a.kernel[0])) return;
    std::memcpy(rows, inside, a.kernel[0]);
    known = true;
    for (int64_t set = 0; set < sets; set++) {
      uint8_t taps[kMostTaps * kMostTaps];
      for (int64_t i = 0; i < a.kernel[0]; i++)
        for (int64_t j = 0; j < a.kernel[1]; j++)
          taps[i * a.kernel[1] + j] = rows[i] && columns[set * a.kernel[1] + j];
      w.border(a.finish, taps, terms + set * span);
    }
  }

  const float* of(int64_t x) const { return a.finish.sums ? terms + set_of[x] * span : nullptr; }
};

// Codes in the wider lanes of a vector.
template <typename Vector, typename Lane>
QM_INLINE Vector widened(const uint8_t* p) {
#if defined(__AVX512BW__) && QM_WIDTH == 16
  if constexpr (sizeof(Lane) == 2) return (Vector)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
  else return (Vector)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__) && QM_WIDTH == 8
  if constexpr (sizeof(Lane) == 2) return (Vector)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
  else return (Vector)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  typedef uint8_t Bytes __attribute__((vector_size(sizeof(Vector) / sizeof(Lane))));
  Bytes codes;
  std::memcpy(&codes, p, sizeof codes);
  return __builtin_convertvector(codes, Vector);
#endif
}

// W integers of 16 bits as integers of 32.
QM_INLINE vi widened_short(const int16_t* p) {
#if defined(__AVX512F__) && QM_WIDTH == 16
  return (vi)_mm512_maskz_cvtepi16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && QM_WIDTH == 8
  return (vi)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  typedef int16_t Short __attribute__((vector_size(2 * W)));
  Short lanes;
  std::memcpy(&lanes, p, sizeof lanes);
  return __builtin_convertvector(lanes, vi);
#endif
}

template <typename Vector>
QM_INLINE Vector weights_of(const int16_t* p) {
  if constexpr (sizeof(Vector{}[0]) == 4) return widened_short(p);
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Writes a vector of sums, of 16 or 32 bits, on top of `start` (null for 0).
template <typename Vector>
QM_INLINE void store_sums(Vector sum, const int32_t* start, int32_t* to) {
  constexpr int kParts = sizeof(sum[0]) == 2 ? 2 : 1;
  int16_t lanes[2 * W];
  std::memcpy(lanes, &sum, sizeof sum);
#pragma GCC unroll 2
  for (int i = 0; i < kParts; i++) {
    vi part;
    if constexpr (kParts == 1) part = sum;
    else part = widened_short(lanes + i * W);
    if (start) part += load_int32(start + i * W);
    std::memcpy(to + i * W, &part, sizeof part);
  }
}

// Sums of the channels of kPixels pixels over all taps. Every tap is an address of the codes of the first pixel, the next
// are `apart` bytes away; n channels, a multiple of 32.
template <typename Lane, bool kOnes>
void depthwise_sums(const uint8_t* const* taps, int64_t count, int64_t apart, const int16_t* weights, const int32_t* start,
                    int64_t n, int32_t* sums, int32_t* ones) {
  constexpr int L = 4 * W / sizeof(Lane);  // lanes of a vector
  typedef Lane Vector __attribute__((vector_size(4 * W)));
  for (int64_t c = 0; c < n; c += L) {
    Vector sum[kPixels] = {}, one[kPixels] = {};
    for (int64_t t = 0; t < count; t++) {
      const Vector weight = weights_of<Vector>(weights + t * n + c);
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; p++) {
        const Vector u = widened<Vector, Lane>(taps[t] + p * apart + c);
        sum[p] += u * weight;
        if (kOnes) one[p] += u;
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; p++) {
      store_sums(sum[p], start + c, sums + p * n + c);
      if (kOnes) store_sums(one[p], nullptr, ones + p * n + c);
    }
  }
}

// One row of the output of a depthwise convolution.
void depthwise_row(const IntegerArgs& a, const Ending& ending, const Weights& w, const Ring& ring,
                   const uint8_t* const* lines, int64_t row, const Borders& borders, const float* ones_scale,
                   int32_t* sums, int32_t* counts, float* ones) {
  const int64_t taps = a.kernel[0] * a.kernel[1], lanes = w.lanes;
  const int16_t* const weights = (const int16_t*)w.data;
  for (int64_t x = 0; x < a.out_width; x += kPixels) {
    const int64_t n = a.out_width - x < kPixels ? a.out_width - x : kPixels;
    const uint8_t* at[kMostTaps * kMostTaps];
    for (int64_t i = 0; i < a.kernel[0]; i++)
      for (int64_t j = 0; j < a.kernel[1]; j++)
        at[i * a.kernel[1] + j] = lines[i] + (x * a.stride[1] + j * a.dilation[1]) * ring.pixel;
    int32_t* const count = w.head.ones ? counts : nullptr;
    const int64_t apart = a.stride[1] * ring.pixel;
    const bool narrow = w.head.pair <= INT16_MAX;
    const auto run = count ? (narrow ? depthwise_sums<int16_t, true> : depthwise_sums<int32_t, true>)
                           : (narrow ? depthwise_sums<int16_t, false> : depthwise_sums<int32_t, false>);
    ending.fetch(row + x + kPixels, kPixels, 0, a.out);
    run(at, taps, apart, weights, w.start, lanes, sums, count);
    if (count)
      for (int64_t p = 0; p < n; p++)
        for (int64_t c = 0; c < lanes; c++)
          ones[p * lanes + c] = (float)(count[p * lanes + c] - w.head.zero * (int32_t)taps) * ones_scale[c];
    const float* border[kPixels];
    for (int64_t p = 0; p < n; p++) border[p] = borders.of(x + p);
    const Terms t = {w.scale, count ? w.factor : nullptr, a.finish.bias ? w.bias : nullptr, nullptr,
                     a.finish.sums ? border : nullptr};
    ending.template operator()<true>(t, sums, ones, lanes, n, row + x, 0, a.out);
  }
}

bool convolve(const IntegerArgs& a, int64_t image, int64_t first, int64_t last) {
  const PackedHead& head = *(const PackedHead*)a.blob;
  const bool depthwise = head.depthwise;
  const int64_t index = a.x.grids > 1 ? image : 0;
  const int64_t tile = depthwise ? kPixels * head.lanes : kMostRows * kMostPanels * kPanel;
  const int64_t floats = depthwise ? kPixels * head.lanes + 2 * W : kChunk;
  Scratch memory(Weights::scratch(a) + Ring::scratch(a, depthwise) + Borders::scratch(a) +
                 2 * Scratch::size<int32_t>(tile) + 2 * Scratch::size<float>(floats));
  if (!memory.memory) return false;
  const Weights w(a, memory, index);
  Ring ring(a, memory, image, index, depthwise);
  Borders borders(a, w, memory);
  const Ending ending(a.finish);
  int32_t *const sums = memory.take<int32_t>(tile), *const counts = memory.take<int32_t>(tile);
  float *const ones = memory.take<float>(floats), *const ones_scale = memory.take<float>(floats);
  if (depthwise && head.ones) {
    std::memset(ones_scale, 0, floats * sizeof(float));
    for (int64_t c = 0; c < head.groups; c++) ones_scale[c] = w.step * a.finish.scale[2 * c + 1];
  }
  const Terms terms = {w.scale, head.ones ? w.factor : nullptr, a.finish.bias ? w.bias : nullptr, nullptr, nullptr};
  const bool joined = a.groups == 1 && a.dilation[1] == 1;  // a row of the kernel is one stretch of bytes
  const int64_t steps = head.steps * (joined ? a.kernel[1] : 1);
  for (int64_t y = first; y < last; y++) {
    const uint8_t* lines[kMostTaps];
    for (int64_t i = 0; i < a.kernel[0]; i++)
      lines[i] = ring.row(y * a.stride[0] - a.padding[0] + i * a.dilation[0]);
    borders.enter(y);
    const int64_t row = (image * a.out_height + y) * a.out_width;
    if (depthwise) {
      depthwise_row(a, ending, w, ring, lines, row, borders, ones_scale, sums, counts, ones);
      continue;
    }
    for (int64_t g = 0; g < a.groups; g++)
      for (int64_t x = 0; x < a.out_width; x += kChunk) {
        const int64_t n = a.out_width - x < kChunk ? a.out_width - x : kChunk;
        const uint8_t* segments[kMostTaps * kMostTaps];
        int64_t count = 0;
        for (int64_t i = 0; i < a.kernel[0]; i++)
          for (int64_t j = 0; j < (joined ? 1 : a.kernel[1]); j++)
            segments[count++] = lines[i] + (x * a.stride[1] + j * a.dilation[1]) * ring.pixel + g * ring.depth;
        const float* border[kChunk];
        for (int64_t r = 0; r < n; r++) border[r] = borders.of(x + r);
        Terms here = terms;
        if (a.finish.sums) here.last = border;
        finish_rows(ending, w, g, segments, count, steps, a.stride[1] * ring.pixel, n, row + x, here, sums, ones);
      }
  }
  return true;
}

}  // namespace
}  // namespace QM_ISA
