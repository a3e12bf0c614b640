// The passes between integer operators on heap buffers of exactly the right size: every step alone and all together, rows
// dense and with gaps, shapes with full and partial vectors, NaN and infinite values; and wrong arguments, which are refused.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "../glue.h"
#include "../program.h"

extern "C" {
const char* qm_isa();
int64_t qm_run(ProgramArgs*);
int64_t qm_glue_rows(const GlueArgs*);
int64_t qm_glue_attend(const AttendArgs*);
int64_t qm_glue_delta(const DeltaArgs*);
int64_t qm_glue_route(const RouteArgs*);
int64_t qm_glue_uniform(TorchMersenne*, float*, int64_t);
int64_t qm_glue_order(const int64_t*, int64_t, int64_t, int32_t*, int64_t*);
}

namespace {

typedef std::vector<float> Floats;
typedef std::vector<uint8_t> Bytes;

uint32_t seed = 1;
float random_value() {
  seed = seed * 1664525u + 1013904223u;
  return (float)(seed >> 8) / (float)(1 << 23) - 1.f;
}

Floats random_floats(int64_t n, bool odd = false) {
  Floats b(n);
  for (float& v : b) v = 3 * random_value();
  const float inf = std::numeric_limits<float>::infinity(), values[] = {std::nanf(""), inf, -inf, 3e38f, 1e-42f};
  for (int64_t i = 0; odd && i < 5 && i < n; i++) b[i] = values[i];
  return b;
}

void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "%s: %s: failed\n", qm_isa(), what);
  std::abort();
}

const GlueRule kRule = {{0.5f, 2, -0.1f, 0.1f}, {-1, 0, 0, 0}, -8, 7, 0.5f};
const float kGrid[4] = {0.3f, 0.1f, -8, 7};

// One pass with the steps whose bits are set; `gap` elements between rows.
void rows(int64_t count, int64_t columns, int64_t gap, unsigned steps, int64_t threads, bool odd) {
  const int64_t stride = columns + gap, size = (count - 1) * stride + columns;
  const Floats x = random_floats(size, odd), added = random_floats(size), other = random_floats(size);
  const Floats scale = random_floats(columns), weight = random_floats(columns), bias = random_floats(columns);
  Floats sum(size), out(size), statistics(4), grid(4);
  Bytes codes(size), codes2(size);
  GlueArgs a = {};
  a.rows = count, a.columns = columns, a.threads = threads, a.x = x.data(), a.x_stride = stride, a.epsilon = 1e-5;
  const auto on = [&](int bit) { return (steps >> bit & 1) != 0; };
  if (on(0)) a.x_scale = scale.data();
  if (on(1)) a.added = added.data(), a.added_stride = stride;
  if (on(2)) a.added_scale = scale.data();
  if (on(3)) a.sum = sum.data(), a.sum_stride = stride;
  if (on(4)) a.norm_weight = weight.data(), a.norm_bias = on(5) ? bias.data() : nullptr;
  a.activation = steps % 4;
  if (on(6)) a.other = other.data(), a.other_stride = stride, a.combination = 1 + steps % 3;
  if (on(7)) a.out = out.data(), a.out_stride = stride;
  if (on(8)) a.codes = codes.data(), a.codes_stride = stride, a.grid = kGrid, a.zero = 8;
  if (on(9)) a.codes2 = codes2.data(), a.codes2_stride = stride, a.grid2 = kGrid, a.zero2 = 8;
  if (on(10)) a.statistics = statistics.data(), a.rule = &kRule, a.new_grid = grid.data();
  check(qm_glue_rows(&a) == kGlueDone, "rows");
  if (on(8) && !odd)
    for (int64_t r = 0; r < count; r++)
      for (int64_t c = 0; c < columns; c++) check(codes[r * stride + c] < 16, "codes within their grid");
  for (int64_t* field : {&a.rows, &a.columns, &a.x_stride}) {
    for (const int64_t value : {(int64_t)0, (int64_t)-1, INT64_MIN, columns - 1}) {
      if (field == &a.rows && value > 0) continue;
      const int64_t kept = *field;
      *field = field == &a.columns && value > 0 ? kGlueBuffer + 1 : value;
      check(qm_glue_rows(&a) == kGlueRefused, "wrong sizes");
      *field = kept;
    }
  }
}

void delta(int64_t count, int64_t K, int64_t D, int64_t R, bool shifted, bool measured, int64_t threads) {
  Bytes dt(count * K * R), codes(count * K * D);
  std::vector<int8_t> weight(K * D * R);
  for (uint8_t& v : dt) v = (uint8_t)((random_value() + 1) * 7.9f);
  for (int8_t& v : weight) v = (int8_t)(random_value() * 8);
  const Floats scale = random_floats(K * D), factor = random_floats(K * D), ones = random_floats(K), sums = random_floats(K * D);
  Floats out(count * K * D), statistics(4), grid(4);
  DeltaArgs a = {};
  a.rows = count, a.directions = K, a.channels = D, a.rank = R, a.threads = threads;
  a.dt = dt.data(), a.dt_stride = K * R, a.dt_zero = 8, a.dt_grid = kGrid, a.weight = weight.data(), a.scale = scale.data();
  if (shifted) a.factor = factor.data(), a.ones = ones.data(), a.sums = sums.data(), a.bias = factor.data();
  if (measured) a.statistics = statistics.data(), a.rule = &kRule, a.new_grid = grid.data();
  if (measured) check(qm_glue_delta(&a) == kGlueDone, "statistics of delta");
  a.codes = codes.data(), a.grid = kGrid, a.zero = 8;
  check(qm_glue_delta(&a) == kGlueDone, "codes of delta");
  a.out = out.data();
  check(qm_glue_delta(&a) == kGlueDone, "delta");
  for (int64_t* field : {&a.rows, &a.directions, &a.channels, &a.rank, &a.dt_stride}) {
    for (const int64_t value : {(int64_t)0, (int64_t)-1, INT64_MIN}) {
      const int64_t kept = *field;
      *field = value;
      check(qm_glue_delta(&a) == kGlueRefused, "wrong sizes of delta");
      *field = kept;
    }
  }
  a.rank = kMaxRank + 1;
  check(qm_glue_delta(&a) == kGlueRefused, "a rank beyond the largest");
}

TorchMersenne generator() {
  TorchMersenne state = {};
  state.left = 1;
  state.words[0] = 5;
  for (uint32_t i = 1; i < 624; i++) {
    const uint32_t before = (uint32_t)state.words[i - 1];
    state.words[i] = 1812433253u * (before ^ before >> 30) + i;
  }
  return state;
}

void routes(int64_t count, int64_t prompts, int64_t inputs, int64_t hidden, int64_t threads, bool odd) {
  const auto padded = [](int64_t n) { return (n + kRouteLanes - 1) / kRouteLanes * kRouteLanes; };
  const Floats scores = random_floats(count * prompts, odd), x = random_floats(count * inputs, odd);
  const Floats enter = random_floats(inputs * padded(hidden)), enter_bias = random_floats(padded(hidden));
  const Floats leave = random_floats(hidden * padded(prompts)), leave_bias = random_floats(padded(prompts));
  Floats uniform(count * prompts);
  TorchMersenne state = generator();
  check(qm_glue_uniform(&state, uniform.data(), count * prompts) == kGlueDone, "uniform numbers");
  for (const float u : uniform) check(u >= 0 && u < 1, "numbers in [0, 1)");
  std::vector<int64_t> picked(count, -1), inverse(count);
  std::vector<int32_t> order(count);
  RouteArgs a = {};
  a.rows = count, a.prompts = prompts, a.threads = threads, a.uniform = uniform.data(), a.picked = picked.data();
  const auto run = [&] {
    check(qm_glue_route(&a) == kGlueDone, "picks");
    for (const int64_t p : picked) check(p >= 0 && p < prompts, "a pick is a prompt");
    check(qm_glue_order(picked.data(), count, prompts, order.data(), inverse.data()) == kGlueDone, "order");
    for (int64_t i = 0; i < count; i++) check(inverse[order[i]] == i, "an order and its inverse");
  };
  check(qm_glue_route(&a) == kGlueRefused, "neither scores nor layers");
  a.x = x.data(), a.x_stride = inputs, a.inputs = inputs, a.hidden = hidden, a.enter = enter.data();
  a.enter_bias = enter_bias.data(), a.leave = leave.data(), a.leave_bias = leave_bias.data();
  run();
  for (int64_t* field : {&a.rows, &a.prompts, &a.inputs, &a.hidden, &a.x_stride}) {
    for (const int64_t value : {(int64_t)0, (int64_t)-1, INT64_MIN}) {
      const int64_t kept = *field;
      *field = value;
      check(qm_glue_route(&a) == kGlueRefused, "wrong sizes of a route");
      *field = kept;
    }
  }
  a.scores = scores.data(), a.scores_stride = prompts;
  run();
  for (const int64_t wild : {(int64_t)-1, prompts, INT64_MAX, INT64_MIN}) {
    const int64_t kept = picked[count / 2];
    picked[count / 2] = wild;
    check(qm_glue_order(picked.data(), count, prompts, order.data(), inverse.data()) == kGlueRefused, "a wild pick");
    picked[count / 2] = kept;
  }
}

void attend(int64_t count, int64_t columns, int64_t hidden, int64_t threads, bool odd) {
  const int64_t stride = columns + 3 * odd;
  const Floats x = random_floats((count - 1) * stride + columns), enter = random_floats(hidden * columns);
  const Floats enter_bias = random_floats(hidden), leave = random_floats(columns * hidden);
  const Floats leave_bias = random_floats(columns);
  Floats out(columns);
  AttendArgs a = {count, columns, hidden, threads, x.data(), stride, enter.data(), enter_bias.data(), leave.data(),
                  leave_bias.data(), out.data()};
  check(qm_glue_attend(&a) == kGlueDone, "channel attention");
  for (const float v : out) check(v >= 0 && v <= 1, "a sigmoid");
  for (int64_t* field : {&a.rows, &a.columns, &a.hidden, &a.x_stride}) {
    for (const int64_t value : {(int64_t)0, (int64_t)-1, INT64_MIN}) {
      const int64_t kept = *field;
      *field = value;
      check(qm_glue_attend(&a) == kGlueRefused, "wrong sizes of channel attention");
      *field = kept;
    }
  }
}

// torch.rand(3) of the generator with seed 5, and states that no generator has.
void uniform_numbers() {
  TorchMersenne state = generator();
  float first[3];
  check(qm_glue_uniform(&state, first, 3) == kGlueDone, "uniform numbers");
  const float wanted[3] = {0.8302518725395203f, 0.12611091136932373f, 0.9074696898460388f};
  for (int i = 0; i < 3; i++) check(std::fabs(first[i] - wanted[i]) < 1e-7f, "torch's numbers");
  for (const int64_t n : {1, 600, 20, 1, 1, 1300}) {
    Floats more(n);
    check(qm_glue_uniform(&state, more.data(), n) == kGlueDone, "more numbers");
  }
  const TorchMersenne good = state;
  for (const int32_t left : {0, -1, 625, INT32_MAX, INT32_MIN}) {
    state.left = left;
    check(qm_glue_uniform(&state, first, 3) == kGlueRefused, "a wrong count");
  }
  state = good, state.left = 300;
  for (const uint64_t next : {(uint64_t)326, (uint64_t)624, UINT64_MAX}) {
    state.next = next;
    check(qm_glue_uniform(&state, first, 3) == kGlueRefused, "a wrong place");
  }
}

// Steps run up to the one that refuses its arguments.
void programs() {
  const Floats x = random_floats(12);
  Floats out(12), late(12);
  GlueArgs good = {}, bad = {}, last = {};
  good.rows = 3, good.columns = 4, good.threads = 2, good.x = x.data(), good.x_stride = 4, good.out = out.data(), good.out_stride = 4;
  bad = last = good;
  bad.rows = 0, last.out = late.data();
  const auto rows = [](const void* args) { return qm_glue_rows((const GlueArgs*)args); };
  const ProgramStep steps[] = {{rows, &good}, {rows, &good}, {rows, &bad}, {rows, &last}};
  ProgramArgs whole = {4, 2, steps, 7}, part = {2, 2, steps, 7}, none = {0, 1, nullptr, 7};
  if (qm_run(&whole) != kGlueRefused || whole.failed != 2 || out != x || late[0] != 0) std::abort();
  if (qm_run(&part) || qm_run(&none)) std::abort();
  for (ProgramArgs wrong : {ProgramArgs{-1, 1, steps, 7}, ProgramArgs{1, 0, steps, 7}, ProgramArgs{1, 1, nullptr, 7}})
    if (qm_run(&wrong) != 1) std::abort();
}

}  // namespace

int main() {
  programs();
  for (const bool odd : {false, true}) {
    for (const int64_t columns : {1, 7, 16, 33, 60, 97}) {
      for (const int64_t count : {1, 5, 40}) {
        for (unsigned bit = 0; bit < 11; bit++) rows(count, columns, bit % 2 * 3, 1u << bit | 128, 1, odd);
        for (const unsigned steps : {0x7ffu, 0x7dfu, 0x53au, 0x780u, 0x100u, 0x400u, 0x500u}) {
          rows(count, columns, 0, steps, 1, odd);
          rows(count, columns, 5, steps, 2, odd);
        }
      }
    }
    for (const int64_t prompts : {1, 7, 16, 64, 100}) routes(29, prompts, 9, prompts % 2 ? 5 : 33, 2, odd);
    routes(1, 3, 1, 1, 1, odd);
    for (const int64_t columns : {1, 7, 60, 97}) attend(columns == 60 ? 1100 : 5, columns, columns % 5 + 1, 2, odd);
  }
  for (const bool shifted : {false, true}) {
    for (const int64_t rank : {1, 4, 5, 12, 64}) delta(23, rank > 12 ? 1 : 4, 21, rank, shifted, shifted, 1);
    delta(1030, 2, 300, 3, shifted, true, 2);
  }
  uniform_numbers();
  std::printf("%s: glue clean\n", qm_isa());
}
