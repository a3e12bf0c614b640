// The selective scan where delta is a code: decays and steps come from tables, and the recurrence is two multiply-adds.
// One vector holds neighbouring states of one channel, as a row of decays does: a row is one load, without a gather. The
// states of a group of channels stay in registers while it walks a tile of tokens, and what the channels of a group put
// out is summed up over their states together.
#pragma once

#include <cstdlib>

#include "scan_walk.h"
#include "table_scan.h"

namespace QM_ISA {
namespace {

constexpr int kTokens = 64;  // of a tile
constexpr int kMaxRow = 256;

typedef uint8_t vb __attribute__((vector_size(QM_WIDTH)));

QM_INLINE vi codes_at(const uint8_t* p, int lanes) {
  vb bytes = {};
  if (lanes == W)
    std::memcpy(&bytes, p, W);
  else
    for (int l = 0; l < lanes; l++) bytes[l] = p[l];
  return __builtin_convertvector(bytes, vi);
}

QM_INLINE vf floats_at(const float* p, int lanes) { return lanes == W ? load(p) : load(p, lanes); }

// The grid of an operand for one image.
struct Entrance {
  const Operand& from;
  vf step, offset, shift, lowest, highest;
  vi zero;

  Entrance(const Operand& operand, int64_t image) : from(operand) {
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
  QM_INLINE vf values(int64_t at, int lanes) const {
    if (from.kind == kValues) return floats_at((const float*)from.data + at, lanes);
    const vf code = from.kind == kCodes ? __builtin_convertvector(codes_at((const uint8_t*)from.data + at, lanes) - zero, vf)
                                        : entering(floats_at((const float*)from.data + at, lanes));
    return (code - shift) * step;
  }

  // Rows of a table, 0 to 2^bits - 1 whatever is stored.
  QM_INLINE vi rows(int64_t at, int lanes) const {
    const vi code = from.kind == kCodes
                        ? codes_at((const uint8_t*)from.data + at, lanes)
                        : __builtin_convertvector(entering(floats_at((const float*)from.data + at, lanes)), vi) + zero;
    return code & (zero + zero - 1);
  }
};

// Lanes kFrom, kFrom + 1, ... of each stretch of 2 kHalf lanes, of a and then of b.
template <int kLanes, int kHalf, int kFrom, int... kLane>
QM_INLINE typename Lanes<kLanes>::type halves(typename Lanes<kLanes>::type a, typename Lanes<kLanes>::type b,
                                              std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kLane / kHalf * 2 * kHalf + kLane % kHalf + kFrom)...);
#else
  typedef int32_t index __attribute__((vector_size(4 * kLanes)));
  return __builtin_shuffle(a, b, index{(kLane / kHalf * 2 * kHalf + kLane % kHalf + kFrom)...});
#endif
}

// The sums of the lanes of kLanes vectors, given by vector(0), ..., vector(kLanes - 1): lane c is that of vector c.
template <int kLanes, int kHalf, typename Vector>
QM_INLINE typename Lanes<kLanes>::type lane_sums(int first, const Vector& vector) {
  if constexpr (kHalf == kLanes) {
    return vector(first);
  } else {
    const auto a = lane_sums<kLanes, 2 * kHalf>(first, vector);
    const auto b = lane_sums<kLanes, 2 * kHalf>(first + kLanes / (2 * kHalf), vector);
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
    return halves<kLanes, kHalf, 0>(a, b, lanes) + halves<kLanes, kHalf, kHalf>(a, b, lanes);
  }
}

template <int kLanes>
QM_INLINE typename Lanes<kLanes>::type row_at(const float* p) {
  typename Lanes<kLanes>::type v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// A tile of one block of W channels.
struct BlockTile {
  int count;
  const float* decays;        // of the first channel
  float input[kTokens][W];    // dt x
  uint32_t row[kTokens][W];   // element of `decays`
  float sum[kTokens][W];      // C . h
};

// kVectors vectors of kLanes states are a row; 0 reads their number from the arguments.
template <int kLanes, int kVectors>
void recur(BlockTile& tile, const float* B, const float* C, float* states, int vectors) {
  typedef typename Lanes<kLanes>::type vector;
  const int count = kVectors ? kVectors : vectors;
  for (int group = 0; group < W; group += kLanes) {
    float* const h = states + group * count * kLanes;
    for (int t = 0; t < tile.count; t++) {
      const float* const Bt = B + t * count * kLanes;
      const float* const Ct = C + t * count * kLanes;
      const vector sums = lane_sums<kLanes, 1>(0, [&](int c) __attribute__((always_inline)) {
        const float* const decay = tile.decays + tile.row[t][group + c];
        const float input = tile.input[t][group + c];
        float* const own = h + c * count * kLanes;
        vector product = {};
        for (int v = 0; v < count; v++) {
          const vector before = row_at<kLanes>(own + v * kLanes);
          const vector after = row_at<kLanes>(decay + v * kLanes) * before + (row_at<kLanes>(Bt + v * kLanes) * input + before);
          std::memcpy(own + v * kLanes, &after, sizeof after);
          product += after * row_at<kLanes>(Ct + v * kLanes);
        }
        return product;
      });
      std::memcpy(tile.sum[t] + group, &sums, sizeof sums);
    }
  }
}

void recur_sized(BlockTile& tile, const float* B, const float* C, float* states, int row) {
  constexpr int kFour = W < 4 ? W : 4, kEight = W < 8 ? W : 8;
  switch (row) {
    case 4: return recur<kFour, 4 / kFour>(tile, B, C, states, 0);
    case 8: return recur<kEight, 8 / kEight>(tile, B, C, states, 0);
    case 16: return recur<W, 16 / W>(tile, B, C, states, 0);
    default: return recur<W, 0>(tile, B, C, states, row / W);
  }
}

bool table_scan(const TableScanArgs& a, int64_t image, int64_t k, int64_t first, int64_t last) {
  const Walk walk(a, k);
  const int row = (int)a.row, state = (int)a.state;
  const int64_t levels = (int64_t)1 << a.delta.bits, blocks = (last - first + W - 1) / W;
  const Entrance x(a.x, image), delta(a.delta, image), B(a.B, image), C(a.C, image);
  // states of every block, B and C of a tile; zero beyond the states, where decays are zero as well
  const int64_t floats = blocks * W * row + 2 * kTokens * row;
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, floats * sizeof(float))) return false;
  std::memset(memory, 0, floats * sizeof(float));
  float* const states = (float*)memory;
  float* const tile_B = states + blocks * W * row;
  float* const tile_C = tile_B + kTokens * row;
  float* const y = a.y + image * walk.length * map_row(a) + map_offset(a, k);
  const float* const decays = a.decays + image * a.decays_stride + k * a.channels * levels * row;
  const float* const steps = a.steps + image * a.steps_stride + k * a.channels * levels;
  const auto place = [image, k](const Operand& o) { return image * o.stride[0] + k * o.stride[3]; };
  const int64_t x_from = place(a.x), delta_from = place(a.delta), B_from = place(a.B), C_from = place(a.C);
  int64_t at_x[kTokens], at_delta[kTokens], at_B[kTokens], at_C[kTokens], pixel[kTokens];
  BlockTile tile;
  for (int64_t begin = 0; begin < walk.length; begin += kTokens) {
    const int64_t end = begin + kTokens < walk.length ? begin + kTokens : walk.length;
    tile.count = (int)(end - begin);
    walk.offsets(a.x.stride, begin, end, at_x);
    walk.offsets(a.delta.stride, begin, end, at_delta);
    walk.offsets(a.B.stride, begin, end, at_B);
    walk.offsets(a.C.stride, begin, end, at_C);
    walk.pixels(begin, end, pixel);
    for (int t = 0; t < tile.count; t++) {
      for (int n = 0; n < state; n += W) {
        const int lanes = state - n < W ? state - n : W;
        store(tile_B + t * row + n, B.values(B_from + at_B[t] + n, lanes), lanes);
        store(tile_C + t * row + n, C.values(C_from + at_C[t] + n, lanes), lanes);
      }
    }
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t channel = first + block * W;
      const int lanes = a.channels - channel < W ? (int)(a.channels - channel) : W;
      vi own;
      for (int l = 0; l < W; l++) own[l] = l < lanes ? l * (int)levels : 0;
      tile.decays = decays + channel * levels * row;
      for (int t = 0; t < tile.count; t++) {
        const vi at = own + delta.rows(delta_from + at_delta[t] + channel, lanes);
        const vf value = x.values(x_from + at_x[t] + channel, lanes);
        vf step = {};
        for (int l = 0; l < lanes; l++) step[l] = steps[channel * levels + at[l]];
        store(tile.input[t], step * value);
        const vi rows = at * row;
        std::memcpy(tile.row[t], &rows, sizeof rows);
      }
      recur_sized(tile, tile_B, tile_C, states + block * W * row, row);
      const vf skip = a.D ? floats_at(a.D + k * a.channels + channel, lanes) : vf{};
      for (int t = 0; t < tile.count; t++) {
        float* const out = y + pixel[t] * map_row(a) + channel;
        vf sum = load(tile.sum[t]) + skip * x.values(x_from + at_x[t] + channel, lanes);
        if (a.merge && k > 0) sum += floats_at(out, lanes);  // last, as where directions are summed by the caller
        if (lanes == W)
          store(out, sum);
        else
          store(out, sum, lanes);
      }
    }
  }
  std::free(memory);
  return true;
}

void scan_tables(const ScanTablesArgs& a, int64_t group, int64_t k, int64_t channel) {
  const int levels = 1 << a.bits, row = (int)a.row, state = (int)a.state;
  const float* const grid = a.grid + 4 * group;
  const int64_t index = (group * a.directions + k) * a.channels + channel;
  float* const steps = a.steps + index * levels;
  float* const decays = a.decays + index * levels * row;
  const float* const A = a.A + (k * a.channels + channel) * state;
  const float bias = a.bias ? a.bias[k * a.channels + channel] : 0.f;
  const float zero = (float)(levels / 2), shift = grid[1] / grid[0];
  for (int level = 0; level < levels; level += W) {
    const int lanes = levels - level < W ? levels - level : W;
    vf code = {}, slope;
    for (int l = 0; l < lanes; l++) code[l] = (float)(level + l) - zero;
    vf step = (code - shift) * grid[0] + bias;
    if (a.softplus) step = softplus(step, &slope);
    store(steps + level, step, lanes);
  }
  for (int n = 0; n < row; n += W) {
    const int lanes = n >= state ? 0 : state - n < W ? state - n : W, kept = row - n < W ? row - n : W;
    const vf rate = floats_at(A + n, lanes) * kLog2e;
    for (int level = 0; level < levels; level++) {
      const float step = steps[level] > kLongestStep ? kLongestStep : steps[level];
      store(decays + level * row + n, exp2m1(step * rate), kept);
    }
  }
}

}  // namespace
}  // namespace QM_ISA
