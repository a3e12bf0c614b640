// The selective scan where delta is a code: decays and steps come from tables, and the recurrence is two multiply-adds.
// One vector holds neighbouring states of one channel, as a row of decays does: a row is one load, without a gather. The
// states of a group of channels stay in registers while it walks a tile of tokens, and what the channels of a group put
// out is summed up over their states together.
#pragma once

#include <cstdlib>

#include "table_scan_recur.h"

namespace QM_ISA {
namespace {

// Where the tokens of a tile lie in each map.
struct Places {
  int count;
  int64_t x[kTokens], delta[kTokens], B[kTokens], C[kTokens], y[kTokens];  // elements; of y bytes

  void find(const TableScanArgs& a, const Walk& walk, int64_t begin) {
    const int64_t end = begin + kTokens < walk.length ? begin + kTokens : walk.length;
    int64_t pixel[kTokens];
    count = (int)(end - begin);
    walk.pixels(begin, end, pixel);
    const Operand* const operands[4] = {&a.x, &a.delta, &a.B, &a.C};
    int64_t* const places[4] = {x, delta, B, C};
    for (int i = 0; i < 4; i++) {
      const int64_t* const stride = operands[i]->stride;
      if (stride[1] == walk.width * stride[2])
        for (int t = 0; t < count; t++) places[i][t] = pixel[t] * stride[2];
      else
        walk.offsets(stride, begin, end, places[i]);
    }
    for (int t = 0; t < count; t++) y[t] = pixel[t] * map_row(a) * (int64_t)sizeof(float);
  }
};

// The scan of channels [first, last) of one image in one direction.
struct TableScan {
  const TableScanArgs& a;
  const int64_t k, first, channels;
  int64_t first_direction, end_direction;  // those that add to the same map
  const Walk walk;
  const Entrance x, delta, B, C;
  const int levels, row, state;
  const int64_t blocks, width;  // width: bytes of a token's codes
  const bool joint;
  const float *decays, *steps;
  float* y;
  float *states, *tile_B, *tile_C, *inputs, *skip;
  float* last_rows;  // of the last block where it is no whole one: groups of channels run to its end
  uint8_t* codes;
  void* memory;

  TableScan(const TableScanArgs& args, int64_t image, int64_t direction, int64_t from, int64_t to)
      : a(args),
        k(direction),
        first(from),
        channels(to - from),
        walk(args, direction),
        x(args.x, image, direction),
        delta(args.delta, image, direction),
        B(args.B, image, direction),
        C(args.C, image, direction),
        levels((int)table_levels(args.delta.bits)),
        row((int)args.row),
        state((int)args.state),
        blocks((channels + W - 1) / W),
        width((channels + 31) / 32 * 32),
        joint(args.delta.bits <= 4 && args.x.kind != kValues && args.x.bits <= 4) {
    decays = a.decays + image * a.decays_stride + (k * a.channels + first) * levels * row;
    steps = a.steps + image * a.steps_stride + (k * a.channels + first) * levels;
    int64_t part = 0;
    while (a.merge && part_begin(a, part + 1) <= k) part++;
    first_direction = a.merge ? part_begin(a, part) : k, end_direction = a.merge ? part_begin(a, part + 1) : k + 1;
    y = a.y + (part * a.batch + image) * walk.length * map_row(a) + map_offset(a, k) + first;
  }

  // Memory; zero beyond the channels and the states.
  bool allocate() {
    const int64_t of_states = blocks * W * row, of_tile = kTokens * row, of_inputs = joint ? blocks * W * kJoint : 0;
    const int64_t of_last = joint && channels % W ? (int64_t)W * levels * row : 0;
    const int64_t of_codes = joint ? (kTokens + 2) * width / 4 : 0, of_skip = blocks * W;
    const int64_t bytes = (of_states + 2 * of_tile + of_inputs + of_last + of_codes + of_skip) * (int64_t)sizeof(float);
    if (posix_memalign(&memory, 64, bytes)) return false;
    std::memset(memory, 0, bytes);
    states = (float*)memory;
    tile_B = states + of_states;
    tile_C = tile_B + of_tile;
    inputs = tile_C + of_tile;
    last_rows = inputs + of_inputs;
    skip = last_rows + of_last;
    codes = (uint8_t*)(skip + of_skip);
    return true;
  }

  // dt x of every pair of codes, and the rows of the last block.
  void fill_tables() {
    float value[16];
    x.values_of_codes(1 << a.x.bits, value);
    const int64_t whole_blocks = channels / W * W, rest = channels - whole_blocks;
    if (rest) std::memcpy(last_rows, decays + whole_blocks * levels * row, rest * levels * row * sizeof(float));
    for (int64_t c = 0; c < channels; c++)
      for (int d = 0; d < 1 << a.delta.bits; d++)
        for (int i = 0; i < 1 << a.x.bits; i++) inputs[c * kJoint + 16 * d + i] = steps[c * levels + d] * value[i];
  }

  // Both codes of every channel of a token in a byte each, kBytes channels at a time; at least as many.
  template <int kBytes>
  QM_INLINE void join_token(const uint8_t* high, const uint8_t* low, uint8_t* both, uint8_t of_delta, uint8_t of_x) {
    typedef uint8_t bytes __attribute__((vector_size(kBytes)));
    typedef uint64_t words __attribute__((vector_size(kBytes)));
    for (int64_t c = 0; c < channels; c += kBytes) {
      const int64_t from = c + kBytes <= channels ? c : channels - kBytes;  // the last ones overlap
      bytes h, l;
      std::memcpy(&h, high + from, kBytes);
      std::memcpy(&l, low + from, kBytes);
      l = (bytes)((words)(h & of_delta) << 4) | (l & of_x);  // no bit leaves its byte
      std::memcpy(both + from, &l, kBytes);
    }
  }

  // The same of all tokens.
  void join(const Places& at) {
    constexpr int kMost = W == 16 ? 64 : 32;  // GCC 12 passes longer vectors than the set's through memory
    uint8_t* const scratch = codes + kTokens * width;
    const uint8_t of_delta = (uint8_t)((1 << a.delta.bits) - 1), of_x = (uint8_t)((1 << a.x.bits) - 1);
    for (int t = 0; t < at.count; t++) {
      const uint8_t* const high = delta.bytes(at.delta[t] + first, channels, scratch);
      const uint8_t* const low = x.bytes(at.x[t] + first, channels, scratch + width);
      uint8_t* const both = codes + t * width;
      if (channels >= kMost) {
        join_token<kMost>(high, low, both, of_delta, of_x);
      } else if (channels >= 32) {
        join_token<32>(high, low, both, of_delta, of_x);
      } else {
        for (int64_t c = 0; c < channels; c += 8) {
          const int count = channels - c < 8 ? (int)(channels - c) : 8;
          const uint64_t every = 0x0101010101010101u, h = (bytes_at(high + c, count) & every * of_delta) << 4;
          const uint64_t l = h | (bytes_at(low + c, count) & every * of_x);
          std::memcpy(both + c, &l, 8);
        }
      }
    }
  }

  // Sums of D: of this direction, or of all that add to the same map and read the same x.
  void fill_skip() {
    const bool shared = !a.x.stride[3];
    for (int64_t d = shared ? first_direction : k; a.D && d < (shared ? end_direction : k + 1); d++)
      for (int64_t c = 0; c < channels; c++) skip[c] += a.D[d * a.channels + first + c];
  }

  // The part D x of what is put out; also makes the map something to add to.
  void start_map(const Places& at) {
    const bool add = k > first_direction, shared = !a.x.stride[3];
    if (shared && add) return;  // the first direction has added it for all
    with_kind(a.x.kind, [&](auto kind) {
      for (int t = 0; t < at.count; t++) {
        for (int64_t c = 0; c < channels; c += W) {
          const int lanes = channels - c < W ? (int)(channels - c) : W;
          float* const out = (float*)((char*)(y + c) + at.y[t]);
          vf base = load(skip + c) * x.values<kind()>(at.x[t] + first + c, lanes);
          if (add) base += floats_at(out, lanes);
          if (lanes == W)
            store(out, base);
          else
            store(out, base, lanes);
        }
      }
    });
  }

  // Values of B or C of the tokens.
  void states_map(const Entrance& from, const int64_t* places, int count, float* out) {
    for (int n = 0; n < state; n += W) {
      const int lanes = state - n < W ? state - n : W;
#if defined(__AVX512F__) && QM_WIDTH == 16
      if (from.from.kind == kCodes && from.from.bits <= 4 && row >= W) {
        const ValueTable table(from);
        for (int t = 0; t < count; t++) store(out + t * row + n, table.values(places[t] + n, lanes));
        continue;
      }
#endif
      with_kind(from.from.kind, [&](auto kind) {
        if (lanes == W)
          for (int t = 0; t < count; t++) store(out + t * row + n, from.values<kind()>(places[t] + n, W));
        else
          for (int t = 0; t < count; t++) store(out + t * row + n, from.values<kind()>(places[t] + n, lanes), lanes);
      });
    }
  }

  // Rows and inputs of one block, where codes are too many for a table of inputs.
  void look_up(const Places& at, int64_t channel, int lanes, uint32_t (*places)[W], float (*input)[W]) {
    const float* const table = steps + channel * levels;
    vi own;
    for (int l = 0; l < W; l++) own[l] = l < lanes ? l * levels : 0;
    with_kind(a.delta.kind, [&](auto kind) {
      for (int t = 0; t < at.count; t++) {
        const vi found = delta.codes<kind()>(at.delta[t] + first + channel, lanes) + own;
        std::memcpy(places[t], &found, sizeof found);
      }
    });
    with_kind(a.x.kind, [&](auto kind) {
      for (int t = 0; t < at.count; t++) {
        vf step = {};
        for (int l = 0; l < lanes; l++) {
          step[l] = table[places[t][l]];
          places[t][l] *= (uint32_t)row;
        }
        store(input[t], step * x.values<kind()>(at.x[t] + first + channel, lanes));
      }
    });
  }

  // Lines of the cache that the bytes of each token lie in at most.
  static int64_t lines_of(const void* data, int64_t row, int64_t column, int64_t bytes) {
    const int64_t steps = (int64_t)(uintptr_t)data | row | column | 64, even = steps & -steps;
    return (bytes + 2 * 64 - 1 - even) / 64;
  }

  // What each token of a tile is read from: line after line of y, delta, x, B and C.
  struct Lines {
    const char* from[5];
    int64_t bytes[5], count[5], total;

    void add(int map, const void* data, int64_t row, int64_t column, int64_t size) {
      from[map] = (const char*)data, bytes[map] = size, count[map] = lines_of(data, row, column, size);
      total += count[map];
    }

    // Line `index` (those beyond `total` are the first again), and which map it is of.
    const char* line(int64_t index, int* map) const {
      index %= total;
      for (*map = 0; index >= count[*map]; ++*map) index -= count[*map];
      const int64_t place = 64 * index;
      return from[*map] + (place < bytes[*map] ? place : bytes[*map] - 1);
    }
  };

  Lines all_lines() const {
    Lines lines = {};
    lines.add(0, y, walk.width * map_row(a) * 4, map_row(a) * 4, channels * 4);
    const auto add = [&](int map, const Entrance& from, int64_t start, int64_t size) {
      const Operand& o = from.from;
      if (o.kind == kCodes)
        lines.add(map, (const char*)o.data + from.place + start, o.stride[1], o.stride[2], size);
    };
    add(1, delta, first, channels), add(2, x, first, channels), add(3, B, 0, state), add(4, C, 0, state);
    return lines;
  }

  // Has block `block` ask for its share of the next tile, and asks for what no block has room for.
  void ask_ahead(const Lines& lines, const Places& next, int64_t block, BlockTile* tile) const {
    const int64_t* const places[5] = {next.y, next.delta, next.x, next.B, next.C};
    int map;
    for (int i = 0; i < kAhead; i++) {
      tile->ahead[i] = lines.line(block * kAhead + i, &map);
      tile->ahead_places[i] = places[map];
    }
    if (block + 1 < blocks) return;
    for (int64_t i = blocks * kAhead; i < lines.total; i++) {
      const char* const p = lines.line(i, &map);
      for (int t = 0; t < next.count; t++) __builtin_prefetch(p + places[map][t]);
    }
  }

  void run() {
    if (joint) fill_tables();
    fill_skip();
    uint32_t places[kTokens][W];
    float input[kTokens][W];
    Places here_and_next[2] = {};  // all places are some: those beyond the last token are asked for as well
    const Lines lines = all_lines();
    here_and_next[0].find(a, walk, 0);
    for (int64_t begin = 0; begin < walk.length; begin += kTokens) {
      const Places& at = here_and_next[begin / kTokens % 2];
      Places& next = here_and_next[(begin / kTokens + 1) % 2];
      const bool more = begin + kTokens < walk.length;
      if (more) next.find(a, walk, begin + kTokens);
      start_map(at);
      states_map(B, at.B, at.count, tile_B);
      states_map(C, at.C, at.count, tile_C);
      if (joint) join(at);
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t c = block * W;
        const int lanes = channels - c < W ? (int)(channels - c) : W;
        BlockTile tile = {at.count, y + c, at.y, tile_B, tile_C, {}, {}};
        ask_ahead(lines, more ? next : at, block, &tile);
        const float* const rows = joint && lanes < W ? last_rows : decays + c * levels * row;
        float* const own = states + c * row;
        if (joint) {
          const auto feed = [&](auto size) { return JointFeed<size()>{codes + c, width, inputs + c * kJoint, rows, row}; };
          recur_sized(tile, feed, own, row, lanes);
        } else {
          look_up(at, c, lanes, places, input);
          recur_sized(tile, [&](auto size) { return ApartFeed<size()>{places[0], input[0], rows}; }, own, row, lanes);
        }
      }
    }
    std::free(memory);
  }
};

bool table_scan(const TableScanArgs& a, int64_t image, int64_t k, int64_t first, int64_t last) {
  TableScan scan(a, image, k, first, last);
  if (!scan.allocate()) return false;
  scan.run();
  return true;
}

void scan_tables(const ScanTablesArgs& a, int64_t group, int64_t k, int64_t channel) {
  const int levels = 1 << a.bits, stored = (int)table_levels(a.bits), row = (int)a.row, state = (int)a.state;
  const float* const grid = a.grid + 4 * group;
  const int64_t index = (group * a.directions + k) * a.channels + channel;
  float* const steps = a.steps + index * stored;
  float* const decays = a.decays + index * stored * row;
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
