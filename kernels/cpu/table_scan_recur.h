// The recurrence of the scan on codes: states of a tile of tokens and a block of channels, and what they put out.
#pragma once

#include "table_scan_operands.h"

namespace QM_ISA {
namespace {

#define QM_LAMBDA __attribute__((always_inline))

constexpr int kTokens = W == 16 ? 192 : 64;  // of a tile: a block's rows of decays come from L2 once for each
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

// Even or odd lanes of a and of b: a b of each stretch of four lanes becomes a a b b.
template <int kLanes, int kWhich>
QM_INLINE typename Lanes<kLanes>::type alternate(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b) {
  constexpr auto each = std::make_integer_sequence<int, kLanes>();
  return in_fours<kLanes, kWhich, 2 + kWhich, 4 + kWhich, 6 + kWhich>(a, b, each);
}

// Neighbouring lanes added up: a's sums and b's in turns of two.
template <int kLanes>
QM_INLINE typename Lanes<kLanes>::type neighbour_sums(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b) {
  return alternate<kLanes, 0>(a, b) + alternate<kLanes, 1>(a, b);
}

// Neighbouring stretches of four lanes added up: those of a, then those of b.
template <int kLanes>
QM_INLINE typename Lanes<kLanes>::type stretch_sums(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b) {
  constexpr auto each = std::make_integer_sequence<int, kLanes>();
  return halves<kLanes, 4, 0>(a, b, each) + halves<kLanes, 4, 1>(a, b, each);
}

// Sums over the states of kGroup channels, in their order in the first lanes. pair(c) gives the neighbour sums of channels
// c and c + 1. Most of the work stays within stretches of four lanes: permutations across them have to share the ports of
// the multiply-adds.
template <int kLanes, int kGroup, typename Pair>
QM_INLINE typename Lanes<kLanes>::type sums_of(const Pair& pair) {
  const auto four = [&](auto c) QM_LAMBDA {  // in each stretch of four lanes those of four channels
    return neighbour_sums<kLanes>(pair(c), pair(std::integral_constant<int, c() + 2>()));
  };
  const auto first = four(std::integral_constant<int, 0>());
  if constexpr (kGroup == 16) {
    const auto low = stretch_sums<kLanes>(first, four(std::integral_constant<int, 4>()));
    const auto third = four(std::integral_constant<int, 8>());
    return stretch_sums<kLanes>(low, stretch_sums<kLanes>(third, four(std::integral_constant<int, 12>())));
  } else if constexpr (kLanes == 4) {
    return first;
  } else {
    auto sums = first;
    if constexpr (kGroup == 8)
      sums = stretch_sums<kLanes>(first, four(std::integral_constant<int, 4>()));
    else
      sums = stretch_sums<kLanes>(first, first);
    if constexpr (kLanes == 16) sums = stretch_sums<kLanes>(sums, sums);
    return sums;
  }
}

constexpr int kAhead = 3;  // lines of each token of the next tile that a block asks for

// What a tile of one block of W channels reads and writes.
struct BlockTile {
  int count;
  float* out;             // of the first channel; added to
  const int64_t* places;  // of the tokens, bytes of `out`
  const float *B, *C;     // rows of the tokens
  // What the next tile reads: where it lies the hardware cannot guess, and asking for it costs nothing between the
  // multiply-adds, if it is done bit by bit. Bytes from `ahead` to each token's.
  const char* ahead[kAhead];
  const int64_t* ahead_places[kAhead];

  QM_INLINE void ask(int64_t t) const {
    for (int i = 0; i < kAhead; i++) __builtin_prefetch(ahead[i] + ahead_places[i][t]);
  }
};

// How a channel of a token finds its row of decays and its input dt x. Joint: a byte holds both codes, and the products of
// dt and x are a table as well.
template <int kRow>
struct JointFeed {
  const uint8_t* joint;  // both codes of the first channel, delta's in the high half
  int64_t stride;               // bytes of a token
  const float *inputs, *decays;
  int64_t row;

  QM_INLINE JointFeed from(int64_t channel) const {
    return {joint + channel, stride, inputs + channel * kJoint, decays + channel * 16 * (kRow ? kRow : row), row};
  }

  QM_INLINE void take(int64_t t, int64_t i, const float** decay, float* input) const {
    const size_t both = joint[t * stride + i], row_of = both & 0xf0;
    *input = inputs[i * kJoint + both];
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
void recur(const BlockTile& given_tile, const Feed& given, float* states, int lanes) {
  typedef typename Lanes<kLanes>::type vector;
  constexpr int kRow = kLanes * kVectors;
  constexpr auto vectors = std::make_integer_sequence<int, kVectors>();
  const BlockTile tile = given_tile;  // its own: what is written could be what `given_tile` holds, for all the compiler knows
  const int count = tile.count;
  for (int group = 0; group < lanes; group += kGroup) {
    const int stored = lanes - group < kGroup ? lanes - group : kGroup;
    const Feed feed = given.from(group);
    float* const own = states + group * kRow;
    vector h[kGroup][kVectors], b[kVectors], c[kVectors];
    constexpr auto all = std::make_integer_sequence<int, kGroup * kVectors>();  // one by one: h is no memory then
    for_each([&](auto n) QM_LAMBDA { h[n / kVectors][n % kVectors] = row_at<kLanes>(own + n * kLanes); }, all);
    for (int t = 0; t < count; t++) {
      if (!group) tile.ask(t);
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
      const vector even = alternate<kLanes, 0>(c[0], c[0]), odd = alternate<kLanes, 1>(c[0], c[0]);
      const auto pair = [&](auto i) QM_LAMBDA {
        constexpr std::integral_constant<int, i() + 1> j{};
        step(i);
        step(j);
        if constexpr (kVectors == 1)  // they change places before they are multiplied
          return alternate<kLanes, 0>(h[i][0], h[j][0]) * even + alternate<kLanes, 1>(h[i][0], h[j][0]) * odd;
        else
          return neighbour_sums<kLanes>(product(i), product(j));
      };
      const vector sums = sums_of<kLanes, kGroup>(pair);
      float* const out = (float*)((char*)(tile.out + group) + tile.places[t]);
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
    tile.ask(t);
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
    const vf sums = sums_of<W, W>([&](auto i) { return neighbour_sums<W>(product(i), product(i + 1)); });
    add_first<W>((float*)((char*)tile.out + tile.places[t]), sums, lanes);
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
    if (W == 16 && lanes <= kFour)
      recur<W, 16 / W, kFour>(tile, given, states, lanes);
    else if (W == 16 && lanes <= kHalf)
      recur<W, 16 / W, kHalf>(tile, given, states, lanes);
    else
      recur<W, 16 / W, W == 16 ? 16 : 4>(tile, given, states, lanes);
  } else {
    recur_long(tile, feed(std::integral_constant<int, 0>()), states, row / W, lanes);
  }
}

}  // namespace
}  // namespace QM_ISA
