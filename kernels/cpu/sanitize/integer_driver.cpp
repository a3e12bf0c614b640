// Calls the integer operators with heap buffers of exactly the right size and compares every result with plain loops, over
// shapes with full and partial vectors and panels, all widths of codes, and arguments that have to be refused. Run under
// the sanitizers, and on other processors than the build machine's (tests/ops/test_integer_aarch64.py).

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "../integer.h"

extern "C" {
const char* qm_integer_isa();
int64_t qm_integer_packed_bytes(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
int64_t qm_integer_pack(const int8_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, uint8_t*, int64_t);
int64_t qm_integer_quantize(const float*, uint8_t*, int64_t, const float*, int64_t, int64_t, int64_t);
int64_t qm_integer_linear(const IntegerArgs*);
int64_t qm_integer_conv(const IntegerArgs*);
int64_t qm_integer_product(const IntegerProductArgs*);
}

namespace {

typedef std::vector<float> Floats;
typedef std::vector<uint8_t> Bytes;

void require(bool good, const char* what, int line) {
  if (good) return;
  std::fprintf(stderr, "%s: line %d: %s\n", qm_integer_isa(), line, what);
  std::abort();
}
#define REQUIRE(condition) require(condition, #condition, __LINE__)

uint32_t seed = 1;
int64_t random_int(int64_t low, int64_t high) {  // high included
  seed = seed * 1664525u + 1013904223u;
  return low + (int64_t)(seed >> 8) % (high - low + 1);
}
// multiples of 1/8: float32 adds them up exactly in any order
Floats random_floats(int64_t n, int64_t most = 64) {
  Floats values(n);
  for (float& v : values) v = (float)random_int(-most, most) / 8;
  return values;
}

struct Case {
  int64_t batch, height, width, groups, in, out, kernel, stride, padding, dilation, bits, weight_bits, kind;  // of a group
  bool ones, shifted;
};

float code_of(float x, const float* grid) {
  return std::min(std::max(std::nearbyint((x + grid[1]) / grid[0]), grid[2]), grid[3]);
}

// Codes q (pixels, channels), and the rows that hold them in the kind of the case.
struct Input {
  std::vector<int64_t> q;
  Floats x;
  Bytes bytes;
  Floats grid;
  IntegerRows rows;

  Input(int64_t pixels, int64_t channels, int64_t kind, int64_t bits, bool shifted) : q(pixels * channels) {
    const int64_t zero = 1 << (bits - 1);
    grid = {0.25f, shifted ? 0.5f : 0.f, (float)-zero, (float)(zero - 1)};
    x = random_floats(pixels * channels, 4 * zero);
    for (size_t i = 0; i < q.size(); i++) {
      if (i % 3 == 0) x[i] = -1e4f;  // the largest sums
      q[i] = (int64_t)code_of(x[i], grid.data());
      bytes.push_back((uint8_t)(kind == kSignedRows ? q[i] : q[i] + zero));
    }
    const void* data = kind == kFloatRows ? (const void*)x.data() : (const void*)bytes.data();
    if (kind != kFloatRows) Floats().swap(x);
    rows = {data, kind, channels, grid.data(), 1, zero};
  }
};

void layer(const Case& c) {
  const bool linear = c.kernel == 1 && c.groups == 1 && c.stride == 1 && c.padding == 0, depthwise = c.in == 1 && c.out == 1 && c.groups > 1;
  const int64_t reach = (c.kernel - 1) * c.dilation + 1, taps = c.kernel * c.kernel, rows_of_group = c.out + c.ones;
  if (c.height + 2 * c.padding < reach || c.width + 2 * c.padding < reach) return;
  const int64_t H = (c.height + 2 * c.padding - reach) / c.stride + 1, W = (c.width + 2 * c.padding - reach) / c.stride + 1;
  const int64_t channels = c.groups * c.in, outs = c.groups * c.out, low = -(1 << (c.weight_bits - 1));
  Input input(c.batch * c.height * c.width, channels, c.kind, c.bits, c.shifted);
  std::vector<int8_t> codes(c.groups * rows_of_group * c.in * taps);
  for (int64_t i = 0; i < (int64_t)codes.size(); i++) {
    const int64_t o = i / (c.in * taps) % rows_of_group;
    codes[i] = (int8_t)(c.ones && o == c.out ? 1 : i % 2 ? low : random_int(low, -low - 1));
  }
  const int64_t bytes = qm_integer_packed_bytes(c.groups, rows_of_group, c.in, taps, input.rows.zero, c.ones, depthwise);
  REQUIRE(bytes > 0);
  Bytes blob(bytes);
  REQUIRE(!qm_integer_pack(codes.data(), c.groups, rows_of_group, c.in, taps, input.rows.zero, c.ones, depthwise, blob.data(), bytes));
  const Floats scale = random_floats(c.groups * rows_of_group), factor = random_floats(outs), bias = random_floats(outs);
  const Floats sums = random_floats(taps * outs), grid = {0.5f, 0.25f, -8, 7}, fine = {4.f, -1.f, -128, 127};
  Floats out(c.batch * H * W * outs), residual = random_floats(out.size());
  Bytes first(out.size()), second(out.size());

  IntegerArgs a = {};
  a.x = input.rows;
  a.batch = c.batch, a.height = c.height, a.width = c.width, a.in = channels, a.out_height = H, a.out_width = W, a.out = outs;
  for (int i = 0; i < 2; i++) a.kernel[i] = c.kernel, a.stride[i] = c.stride, a.padding[i] = c.padding, a.dilation[i] = c.dilation;
  a.groups = c.groups, a.threads = 1, a.blob = blob.data(), a.blob_bytes = bytes;
  a.finish.scale = scale.data(), a.finish.factor = c.ones ? factor.data() : nullptr, a.finish.bias = bias.data();
  a.finish.sums = c.shifted ? sums.data() : nullptr, a.finish.follows = 1;
  a.finish.residual = residual.data(), a.finish.residual_stride = outs;
  a.finish.out = out.data(), a.finish.out_stride = outs;
  a.finish.codes[0] = first.data(), a.finish.codes[1] = second.data();
  a.finish.codes_stride[0] = a.finish.codes_stride[1] = outs;
  a.finish.codes_grid[0] = grid.data(), a.finish.codes_grid[1] = fine.data();
  a.finish.codes_zero[0] = 8, a.finish.codes_zero[1] = 128;
  const auto run = [&] { return linear ? qm_integer_linear(&a) : qm_integer_conv(&a); };
  REQUIRE(run() == kIntegerDone);

  for (int64_t at = 0; at < (int64_t)out.size(); at++) {
    const int64_t channel = at % outs, g = channel / c.out, o = channel % c.out, pixel = at / outs;
    const int64_t x0 = pixel % W * c.stride - c.padding, y0 = pixel / W % H * c.stride - c.padding, image = pixel / W / H;
    int64_t sum = 0, total = 0;
    float border = 0;
    for (int64_t t = 0; t < taps; t++) {
      const int64_t y = y0 + t / c.kernel * c.dilation, x = x0 + t % c.kernel * c.dilation;
      if (y < 0 || y >= c.height || x < 0 || x >= c.width) continue;
      border += sums[t * outs + channel];
      for (int64_t i = 0; i < c.in; i++) {
        const int64_t q = input.q[((image * c.height + y) * c.width + x) * channels + g * c.in + i];
        sum += q * codes[((g * rows_of_group + o) * c.in + i) * taps + t], total += q;
      }
    }
    volatile float v = (float)sum * (input.grid[0] * scale[g * rows_of_group + o]);  // volatile: rounded here
    if (c.ones) {
      volatile float one = (float)total * (input.grid[0] * scale[g * rows_of_group + c.out]);
      one = one * factor[channel];
      v = v - one;
    }
    volatile float term = c.shifted ? input.grid[1] * border : 0;
    if (linear) v = v - term, v = v + bias[channel];
    else v = v + bias[channel], v = v - term;
    v = v + residual[at];
    REQUIRE(v == out[at]);
    REQUIRE(first[at] == code_of(v, grid.data()) + 8 && second[at] == code_of(v, fine.data()) + 128);
  }
  for (const int64_t activation : {kSilu, kGelu}) {
    a.finish.activation = activation, a.finish.codes[0] = nullptr;
    REQUIRE(run() == kIntegerDone);
    for (float v : out) REQUIRE(std::isfinite(v));
  }

  // what has to be refused, before anything is written
  std::fill(out.begin(), out.end(), 7.f);
  const auto with = [&](int64_t& field, int64_t value) {
    const int64_t before = field;
    field = value;
    REQUIRE(run() == kIntegerRefused);
    field = before;
  };
  for (int64_t* field : {&a.batch, &a.height, &a.in, &a.out, &a.groups, &a.out_width, &a.kernel[0], &a.stride[1], &a.x.kind,
                         &a.x.zero, &a.blob_bytes, &a.x.stride, &a.x.grids, &a.finish.out_stride, &a.finish.activation})
    for (const int64_t value : {(int64_t)-1, INT64_MIN, INT64_MAX, (int64_t)1 << 40}) with(*field, value);
  for (size_t i = 0; i < sizeof(PackedHead) - sizeof(PackedHead::unused); i += 4) {
    int32_t before, damaged = -7;
    std::memcpy(&before, blob.data() + i, 4);
    std::memcpy(blob.data() + i, &damaged, 4);
    REQUIRE(run() == kIntegerRefused);
    std::memcpy(blob.data() + i, &before, 4);
  }
  for (float v : out) REQUIRE(v == 7.f);
}

void product(int64_t m, int64_t k, int64_t n, int64_t bits, int64_t kind, bool transposed) {
  Input left(2 * m, k, kind, bits, true), right(2 * k, n, (kind + 1) % 3, bits, true);
  Floats out(2 * m * n);
  IntegerProductArgs p = {};
  p.sizes[0] = 2, p.sizes[1] = 1, p.rows = m, p.terms = k, p.columns = n, p.threads = 1, p.shifted = 1;
  p.a = left.rows, p.b = right.rows;
  p.a_strides[0] = m * k, p.b_strides[0] = k * n, p.out_strides[0] = m * n, p.out_stride = n, p.out = out.data();
  p.b_row = transposed ? 1 : n, p.b_column = transposed ? k : 1;
  REQUIRE(qm_integer_product(&p) == kIntegerDone);
  for (int64_t at = 0; at < 2 * m * n; at++) {
    const int64_t image = at / n / m, row = at / n % m, column = at % n;
    double want = 0;  // steps and shifts are powers of two: exact
    for (int64_t i = 0; i < k; i++)
      want += ((double)left.q[(image * m + row) * k + i] * 0.25 - 0.5) *
              ((double)right.q[image * k * n + i * p.b_row + column * p.b_column] * 0.25 - 0.5);
    REQUIRE(out[at] == want);
  }
  for (int64_t* field : {&p.rows, &p.terms, &p.columns, &p.sizes[0], &p.a.kind, &p.b.zero, &p.out_stride})
    for (const int64_t value : {(int64_t)-1, INT64_MIN, INT64_MAX}) {
      const int64_t before = *field;
      *field = value;
      REQUIRE(qm_integer_product(&p) == kIntegerRefused);
      *field = before;
    }
}

void quantizer(int64_t n) {
  const float inf = std::numeric_limits<float>::infinity(), odd[] = {std::nanf(""), inf, -inf, 3e38f, -3e38f, 1e-42f};
  Floats x = random_floats(n), grid = {0.25f, 0.125f, -8, 7};
  for (int64_t i = 0; i < 6 && i < n; i++) x[i] = odd[i];
  Bytes codes(n);
  for (const int64_t plain : {0, 1}) {
    REQUIRE(!qm_integer_quantize(x.data(), codes.data(), n, grid.data(), 8, plain, 1));
    for (int64_t i = 0; i < n; i++) {
      const float q = x[i] == x[i] ? code_of(x[i], grid.data()) : 0;
      REQUIRE(plain ? (int8_t)codes[i] == q : codes[i] == q + 8);
    }
  }
  REQUIRE(qm_integer_quantize(x.data(), codes.data(), -1, grid.data(), 8, 0, 1) == kIntegerRefused);
  REQUIRE(qm_integer_quantize(x.data(), codes.data(), n, grid.data(), 129, 0, 1) == kIntegerRefused);
}

}  // namespace

int main() {
  for (const int64_t n : {1, 3, 8, 16, 31, 70, 20000}) quantizer(n);
  for (const int64_t bits : {2, 4, 7, 8}) {
    const int64_t kind = bits % 3, other = (bits + 1) % 3;
    for (const int64_t in : {1, 3, 16, 60, 301})
      for (const int64_t out : {1, 15, 16, 33, 145}) layer({1, 5, 11, 1, in, out, 1, 1, 0, 1, bits, bits, kind, in > 3, out > 15});
    for (const int64_t kernel : {1, 3, 5})
      for (const int64_t groups : {1, 3}) {
        layer({2, 7, 9, groups, 6, 17, kernel, 1, kernel / 2, 1, bits, 10 - bits, kind, groups == 1, kernel > 1});
        layer({1, 6, 8, groups, 4, 5, kernel, 2, 2, 2, bits, bits, other, groups > 1, true});
        layer({1, 1, 1, groups, 5, 16, kernel, 1, kernel / 2, 1, 8, bits, kind, false, true});
      }
    for (const int64_t groups : {2, 31, 72})
      for (const int64_t kernel : {3, 5}) {
        layer({2, 5, 7, groups, 1, 1, kernel, 1, kernel / 2, 1, bits, bits, kind, groups == 31, true});
        layer({1, 9, 6, groups, 1, 1, kernel, 2, 2, 2, bits, 8, other, groups == 72, false});
      }
    for (const int64_t n : {1, 13, 64}) product(9, 12, n, bits, kind, true), product(n, 7, 33, bits, other, false);
  }
  layer({1, 1, 3, 1, 2000, 17, 1, 1, 0, 1, 8, 8, kSignedRows, false, true});  // sums that 16 bits do not hold
  layer({1, 1, 3, 1, 2000, 17, 1, 1, 0, 1, 4, 4, kCodeRows, true, true});
  std::printf("integer %s: clean\n", qm_integer_isa());
}
