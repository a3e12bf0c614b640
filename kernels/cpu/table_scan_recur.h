// The recurrence of the scan on codes: states of a tile of tokens and a block of channels, and what they put out.
#pragma once

#include "table_scan_operands.h"

namespace QM_ISA {
namespace {

#define QM_LAMBDA __attribute__((always_inline))

constexpr int kTokens = 64;  // of a tile
constexpr int kJoint = 256;  // inputs of a channel by code of delta (high half) and of x (low half)

template <int kLanes>
QM_INLINE typename Lanes<kLanes>::type row_at(const float* p) {
  typename Lanes<kLanes>::type v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <int kLanes>
QM_INLINE void add_first(float* p, typename Lanes<kLanes>::type v, int count) {
  if constexpr (kLanes == W) {
    store(p, load(p, count) + v, count);
  } else {
    for (int i = 0; i < count; i++) p[i] += v[i];
  }
}

// f(0), ..., f(kCount - 1) with the numbers as constants.
template <typename F, int... kIndex>
QM_INLINE void for_each(const F& f, std::integer_sequence<int, kIndex...>) {
  (f(std::integral_constant<int, kIndex>()), ...);
}

// One vector of two by stretches of 2 kHalf lanes: half kWhich of each, those of a before those of b.
template <int kLanes, int kHalf, int kWhich, int... kLane>
QM_INLINE typename Lanes<kLanes>::type halves(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b,
                                              std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kLane / kHalf * 2 * kHalf + kLane % kHalf + kWhich * kHalf)...);
#else
  typedef int32_t index __attribute__((vector_size(4 * kLanes)));
  return __builtin_shuffle(a, b, index{(kLane / kHalf * 2 * kHalf + kLane % kHalf + kWhich * kHalf)...});
#endif
}

// The first half of a and the second of b; the second half of a and the first of b.
template <int kLanes, int... kLane>
QM_INLINE typename Lanes<kLanes>::type outer_halves(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b,
                                                    std::integer_sequence<int, kLane...>) {
  typedef int32_t mask __attribute__((vector_size(4 * kLanes)));
  return mask{-(2 * kLane < kLanes)...} ? a : b;
}

template <int kLanes, int... kLane>
QM_INLINE typename Lanes<kLanes>::type inner_halves(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b,
                                                    std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kLane + kLanes / 2)...);
#else
  typedef int32_t index __attribute__((vector_size(4 * kLanes)));
  return __builtin_shuffle(a, b, index{(kLane + kLanes / 2)...});
#endif
}

template <int kCount, typename Vector>
QM_INLINE typename Lanes<kCount>::type first_lanes(Vector v) {
  typename Lanes<kCount>::type first;
  std::memcpy(&first, &v, sizeof first);
  return first;
}

// Within each stretch of four lanes: lanes of a (0 to 3) and of b (4 to 7).
template <int kLanes, int k0, int k1, int k2, int k3, int... kLane>
QM_INLINE typename Lanes<kLanes>::type in_fours(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b,
                                                std::integer_sequence<int, kLane...>) {
  constexpr int k[4] = {k0 % 4 + k0 / 4 * kLanes, k1 % 4 + k1 / 4 * kLanes, k2 % 4 + k2 / 4 * kLanes, k3 % 4 + k3 / 4 * kLanes};
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kLane / 4 * 4 + k[kLane % 4])...);
#else
  typedef int32_t index __attribute__((vector_size(4 * kLanes)));
  return __builtin_shuffle(a, b, index{(kLane / 4 * 4 + k[kLane % 4])...});
#endif
}

// The sums over the lanes of two vectors of one channel each, half a vector for each channel.
template <int kLanes>
QM_INLINE typename Lanes<kLanes>::type half_sums(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b) {
  constexpr auto each = std::make_integer_sequence<int, kLanes>();
  return outer_halves<kLanes>(a, b, each) + inner_halves<kLanes>(a, b, each);
}

// Sums over the states of kGroup channels, in their order in the first lanes. one(c) gives the products of a channel,
// two(c, d) those of two, half a vector for each. Four channels apart share a vector, one in four lanes; four such vectors
// are added up lane by lane without crossing these.
template <int kLanes, int kGroup, typename One, typename Two>
QM_INLINE typename Lanes<kLanes>::type sums_of(const One& one, const Two& two) {
  constexpr auto each = std::make_integer_sequence<int, kLanes>();
  const auto shared = [&](auto c) QM_LAMBDA {
    constexpr int i = c();
    if constexpr (kGroup == 4) {
      return one(c);
    } else if constexpr (kGroup == 8) {
      return two(c, std::integral_constant<int, i + 4>());
    } else {
      const auto a = two(c, std::integral_constant<int, i + 4>());
      const auto b = two(std::integral_constant<int, i + 8>(), std::integral_constant<int, i + 12>());
      return halves<kLanes, 4, 0>(a, b, each) + halves<kLanes, 4, 1>(a, b, each);
    }
  };
  const auto pair = [&](auto c) QM_LAMBDA {
    const auto a = shared(c), b = shared(std::integral_constant<int, c() + 1>());
    return in_fours<kLanes, 0, 4, 1, 5>(a, b, each) + in_fours<kLanes, 2, 6, 3, 7>(a, b, each);
  };
  const auto a = pair(std::integral_constant<int, 0>()), b = pair(std::integral_constant<int, 2>());
  const auto sums = in_fours<kLanes, 0, 1, 4, 5>(a, b, each) + in_fours<kLanes, 2, 3, 6, 7>(a, b, each);
  if constexpr (kGroup == kLanes)
    return sums;
  else
    return halves<kLanes, 4, 0>(sums, sums, each) + halves<kLanes, 4, 1>(sums, sums, each);
}

// What a tile of one block of W channels reads and writes.
struct BlockTile {
  int count;
  float* out;             // of the first channel; added to
  const int64_t* places;  // of the tokens, elements of `out`
  const float *B, *C;     // rows of the tokens
};

// How a channel of a token finds its row of decays and its input dt x. Joint: a byte holds both codes, and the products of
// dt and x are a table as well.
template <int kRow>
struct JointFeed {
  const uint8_t *joint, *high;  // of the first channel: both codes, and that of delta alone, where it is in the other
  int64_t stride;               // bytes of a token
  const float *inputs, *decays;
  int64_t row;

  QM_INLINE JointFeed from(int64_t channel) const {
    return {joint + channel, high + channel, stride, inputs + channel * kJoint, decays + channel * 16 * (kRow ? kRow : row), row};
  }

  QM_INLINE void take(int64_t t, int64_t i, const float** decay, float* input) const {
    const size_t row_of = high[t * stride + i];
    *input = inputs[i * kJoint + joint[t * stride + i]];
    *decay = kRow ? decays + i * 16 * kRow + row_of * kRow / 16 : decays + (i * 16 + (row_of >> 4)) * row;
  }
};

// Apart: rows (elements of `decays`) and inputs were looked up before.
template <int kRow>
struct ApartFeed {
  const uint32_t* places;  // W of a token
  const float *inputs, *decays;

  QM_INLINE ApartFeed from(int64_t channel) const { return {places + channel, inputs + channel, decays}; }

  QM_INLINE void take(int64_t t, int64_t i, const float** decay, float* input) const {
    *input = inputs[t * W + i];
    *decay = decays + places[t * W + i];
  }
};

// A row is kVectors vectors of kLanes states. The states of kGroup channels stay in registers.
template <int kLanes, int kVectors, int kGroup, typename Feed>
void recur(const BlockTile& tile, const Feed& given, float* states, int lanes) {
  typedef typename Lanes<kLanes>::type vector;
  constexpr int kRow = kLanes * kVectors;
  constexpr auto each = std::make_integer_sequence<int, kLanes>();
  constexpr auto vectors = std::make_integer_sequence<int, kVectors>();
  const int count = tile.count;
  for (int group = 0; group < lanes; group += kGroup) {
    const int stored = lanes - group < kGroup ? lanes - group : kGroup;
    const Feed feed = given.from(group);
    float* const own = states + group * kRow;
    vector h[kGroup][kVectors], b[kVectors], c[kVectors];
    constexpr auto all = std::make_integer_sequence<int, kGroup * kVectors>();  // one by one: h is no memory then
    for_each([&](auto n) QM_LAMBDA { h[n / kVectors][n % kVectors] = row_at<kLanes>(own + n * kLanes); }, all);
    for (int t = 0; t < count; t++) {
      for_each(
          [&](auto v) QM_LAMBDA {
            b[v] = row_at<kLanes>(tile.B + t * kRow + v * kLanes);
            c[v] = row_at<kLanes>(tile.C + t * kRow + v * kLanes);
          },
          vectors);
      const auto step = [&](auto i) QM_LAMBDA {
        const float* decay;
        float input;
        feed.take(t, i, &decay, &input);
        for_each(
            [&](auto v) QM_LAMBDA { h[i][v] = b[v] * input + (row_at<kLanes>(decay + v * kLanes) * h[i][v] + h[i][v]); },
            vectors);
      };
      const auto product = [&](auto i) QM_LAMBDA {
        vector sum = h[i][0] * c[0];
        if constexpr (kVectors > 1) sum += h[i][1] * c[1];
        if constexpr (kVectors > 2) sum += h[i][2] * c[2] + h[i][3] * c[3];
        return sum;
      };
      // the halves of two channels change places before they are multiplied
      const vector swapped = inner_halves<kLanes>(c[0], c[0], each);
      const auto one = [&](auto i) QM_LAMBDA {
        step(i);
        return product(i);
      };
      const auto two = [&](auto i, auto j) QM_LAMBDA {
        step(i);
        step(j);
        if constexpr (kVectors == 1)
          return outer_halves<kLanes>(h[i][0], h[j][0], each) * c[0] + inner_halves<kLanes>(h[i][0], h[j][0], each) * swapped;
        else
          return half_sums<kLanes>(product(i), product(j));
      };
      const vector sums = sums_of<kLanes, kGroup>(one, two);
      float* const out = tile.out + tile.places[t] + group;
      if (stored == kGroup) {
        typename Lanes<kGroup>::type before;
        std::memcpy(&before, out, sizeof before);
        before += first_lanes<kGroup>(sums);
        std::memcpy(out, &before, sizeof before);
      } else {
        add_first<kLanes>(out, sums, stored);
      }
    }
    for_each([&](auto n) QM_LAMBDA { std::memcpy(own + n * kLanes, &h[n / kVectors][n % kVectors], sizeof(vector)); }, all);
  }
}

// Longer rows, `vectors` of W lanes: states in memory.
template <typename Feed>
void recur_long(const BlockTile& tile, const Feed& feed, float* states, int vectors, int lanes) {
  for (int t = 0; t < tile.count; t++) {
    const float* const Bt = tile.B + t * vectors * W;
    const float* const Ct = tile.C + t * vectors * W;
    const auto product = [&](int i) {
      const float* decay = nullptr;
      float input = 0;
      float* const h = states + i * vectors * W;
      vf sum = {};
      if (i >= lanes) return sum;
      feed.take(t, i, &decay, &input);
      for (int v = 0; v < vectors; v++) {
        const vf before = load(h + v * W);
        const vf after = load(Bt + v * W) * input + (load(decay + v * W) * before + before);
        store(h + v * W, after);
        sum += after * load(Ct + v * W);
      }
      return sum;
    };
    const vf sums = sums_of<W, W>(product, [&](int i, int j) { return half_sums<W>(product(i), product(j)); });
    add_first<W>(tile.out + tile.places[t], sums, lanes);
  }
}

// The recurrence for rows of any length; feed(row) with the row as a constant (0 for longer ones) gives the feed.
template <typename Feeds>
void recur_sized(const BlockTile& tile, const Feeds& feed, float* states, int row, int lanes) {
  constexpr int kFour = W < 4 ? W : 4, kEight = W < 8 ? W : 8, kHalf = W > 8 ? 8 : W;
  if (row == 4) {
    recur<kFour, 1, kFour>(tile, feed(std::integral_constant<int, 4>()), states, lanes);
  } else if (row == 8) {
    recur<kEight, 8 / kEight, kEight>(tile, feed(std::integral_constant<int, 8>()), states, lanes);
  } else if (row == 16) {
    const auto given = feed(std::integral_constant<int, 16>());
    if (W == 16 && lanes <= kHalf)
      recur<W, 16 / W, kHalf>(tile, given, states, lanes);
    else
      recur<W, 16 / W, W == 16 ? 16 : 4>(tile, given, states, lanes);
  } else {
    recur_long(tile, feed(std::integral_constant<int, 0>()), states, row / W, lanes);
  }
}

}  // namespace
}  // namespace QM_ISA
