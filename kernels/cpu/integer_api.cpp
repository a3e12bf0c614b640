// C interface of the integer operators; each function returns an IntegerStatus, and touches nothing where it refuses.

#include "integer.h"

#include <cmath>
#include <cstdlib>

#include "parallel.h"

#if defined(QM_AVXVNNI)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

#if defined(QM_AVXVNNI)
// AVX-VNNI, for which older compilers have no name; the registers it needs are those of AVX2.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

const IntegerKernels* choose() {
  const char* forced = std::getenv("QMAMBAIR_ISA");  // for tests: a narrower set than the CPU has
  const auto allows = [&](const char* name) { return !forced || !std::strcmp(forced, name); };
#if defined(QM_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512 && allows("avx512")) return &integer_avx512;
#if defined(QM_AVXVNNI)
  if (avx2 && has_avxvnni() && allows("avxvnni")) return &integer_avxvnni;
#endif
  if (avx2 && (!forced || std::strcmp(forced, "portable"))) return &integer_avx2;
#endif
#if defined(__aarch64__) && defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP && allows("dotprod")) return &integer_dotprod;
#endif
  (void)allows;
  return &integer_portable;
}

const IntegerKernels& integer_kernels() {
  static const IntegerKernels* const table = choose();
  return *table;
}

int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int64_t kMost = (int64_t)1 << 31;  // of any size: products of two fit
constexpr int64_t kMostKernel = 15;

bool within(int64_t n, int64_t low, int64_t high) { return n >= low && n <= high; }

bool weights_sized(int64_t groups, int64_t out, int64_t in, int64_t taps, int64_t zero, int64_t ones, int64_t depthwise) {
  return within(groups, 1, 1 << 20) && within(out, 1 + (ones != 0), 1 << 20) && within(in, 1, 1 << 20) &&
         within(taps, 1, kMostKernel * kMostKernel) && within(zero, 1, 128) && within(ones, 0, 1) &&
         within(depthwise, 0, 1) && (!depthwise || (in == 1 && out == 1 + ones));
}

PackedHead head_of(int64_t groups, int64_t out, int64_t in, int64_t taps, int64_t zero, int64_t ones, int64_t depthwise) {
  PackedHead h = {};
  h.magic = kPackedMagic, h.depthwise = (int32_t)depthwise, h.groups = (int32_t)groups, h.out = (int32_t)out;
  h.in = (int32_t)in, h.taps = (int32_t)taps, h.zero = (int32_t)zero, h.ones = (int32_t)ones;
  h.lanes = (int32_t)(depthwise ? padded(groups, 32) : padded(out, kPanel));
  h.steps = (int32_t)((in + 3) / 4);
  return h;
}

int64_t blob_size(const PackedHead& h) {
  const int64_t starts = (h.depthwise ? 1 : h.groups) * (int64_t)h.lanes;
  const int64_t weights = h.depthwise ? (int64_t)h.taps * h.lanes * 2 : starts * h.taps * h.steps * 4;
  return (int64_t)sizeof(PackedHead) + starts * 4 + weights;
}

// Where a weight of a group is in a blob.
int64_t place(const PackedHead& h, int64_t g, int64_t o, int64_t i, int64_t tap) {
  const int64_t panel = g * h.lanes / kPanel + o / kPanel;
  return ((panel * h.taps + tap) * h.steps + i / 4) * 4 * kPanel + o % kPanel * 4 + i % 4;
}

bool rows_given(const IntegerRows& x) {
  return x.data && x.grid && within(x.kind, kFloatRows, kSignedRows) && within(x.grids, 1, kMost) && within(x.zero, 1, 128) &&
         within(x.stride, 0, kMost);
}

bool finish_given(const IntegerFinish& f, int64_t out, bool ones) {
  bool good = f.scale && (!ones || f.factor) && within(f.activation, kNoActivation, kGelu);
  good &= !f.residual || within(f.residual_stride, 0, kMost);
  good &= !f.residual_scale || f.residual_scales == 1 || f.residual_scales == out;
  good &= !f.out || within(f.out_stride, out, kMost);
  bool any = f.out;
  for (int k = 0; k < kCodeOutputs; k++) {
    if (!f.codes[k]) continue;
    any = true;
    good &= f.codes_grid[k] && within(f.codes_zero[k], 1, 128) && within(f.codes_stride[k], out, kMost);
  }
  return good && any;
}

bool blob_fits(const IntegerArgs& a) {
  if (!a.blob || (uintptr_t)a.blob % alignof(PackedHead) || a.blob_bytes < (int64_t)sizeof(PackedHead)) return false;
  const PackedHead& h = *(const PackedHead*)a.blob;
  if (h.magic != kPackedMagic) return false;
  if (!weights_sized(h.groups, h.out, h.in, h.taps, h.zero, h.ones, h.depthwise)) return false;
  const PackedHead same = head_of(h.groups, h.out, h.in, h.taps, h.zero, h.ones, h.depthwise);
  return h.lanes == same.lanes && h.steps == same.steps && blob_size(h) == a.blob_bytes && h.zero == a.x.zero &&
         h.groups == a.groups && h.taps == a.kernel[0] * a.kernel[1] && h.in * a.groups == a.in &&
         (h.out - h.ones) * a.groups == a.out && h.pair >= 0;
}

bool args_good(const IntegerArgs& a) {
  bool good = rows_given(a.x) && within(a.batch, 1, kMost) && within(a.height, 1, kMost) && within(a.width, 1, kMost) &&
              within(a.in, 1, 1 << 20) && within(a.out, 1, 1 << 20) && within(a.groups, 1, a.in) &&
              within(a.out_height, 1, kMost) && within(a.out_width, 1, kMost);
  for (int i = 0; i < 2 && good; i++)
    good = within(a.kernel[i], 1, kMostKernel) && within(a.stride[i], 1, 1 << 16) && within(a.padding[i], 0, 1 << 16) &&
           within(a.dilation[i], 1, 1 << 16);
  if (!good || a.x.stride < a.in || !blob_fits(a)) return false;
  const int64_t size[2] = {a.height, a.width}, got[2] = {a.out_height, a.out_width};
  for (int i = 0; i < 2; i++) {
    const int64_t room = size[i] + 2 * a.padding[i] - (a.kernel[i] - 1) * a.dilation[i] - 1;
    if (room < 0 || got[i] != room / a.stride[i] + 1) return false;
  }
  return finish_given(a.finish, a.out, ((const PackedHead*)a.blob)->ones);
}

template <typename Task>
int64_t run(int64_t tasks, int64_t threads, const Task& task) {
  int64_t failed = 0;
  parallel(tasks, threads, [&](int64_t i) {
    if (!task(i)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  });
  return failed ? kIntegerNoMemory : kIntegerDone;
}

}  // namespace

QM_API const char* qm_integer_isa() { return integer_kernels().name; }

// Bytes of the blob of such weights; 0 where there can be none.
QM_API int64_t qm_integer_packed_bytes(int64_t groups, int64_t out, int64_t in, int64_t taps, int64_t zero, int64_t ones,
                                       int64_t depthwise) {
  if (!weights_sized(groups, out, in, taps, zero, ones, depthwise)) return 0;
  return blob_size(head_of(groups, out, in, taps, zero, ones, depthwise));
}

// Codes (groups, out, in, taps), out with the channel of ones where there is one (the last of its group), into a blob.
QM_API int64_t qm_integer_pack(const int8_t* codes, int64_t groups, int64_t out, int64_t in, int64_t taps, int64_t zero,
                               int64_t ones, int64_t depthwise, uint8_t* blob, int64_t bytes) {
  if (!codes || !blob || !weights_sized(groups, out, in, taps, zero, ones, depthwise)) return kIntegerRefused;
  PackedHead h = head_of(groups, out, in, taps, zero, ones, depthwise);
  if (bytes != blob_size(h)) return kIntegerRefused;
  const int64_t largest = 2 * zero < 255 ? 2 * zero : 255, rows = depthwise ? 1 : out;  // of u, if q is -zero..zero
  std::memset(blob, 0, bytes);
  int32_t* const start = (int32_t*)(blob + sizeof(PackedHead));
  int8_t* const weights = (int8_t*)(start + (depthwise ? 1 : groups) * (int64_t)h.lanes);
  int64_t pair = depthwise && ones ? largest * taps : 1;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t o = 0; o < rows; o++) {
      const int8_t* const from = codes + (g * out + o) * in * taps;
      int64_t total = 0, magnitude = 0;
      for (int64_t t = 0; t < taps; t++)
        for (int64_t i = 0; i < in; i++) {
          const int64_t w = from[i * taps + t], next = i % 2 == 0 && i + 1 < in ? from[(i + 1) * taps + t] : 0;
          total += w, magnitude += std::llabs(w);
          const int64_t two = largest * (std::llabs(w) + std::llabs(next));
          if (!depthwise && i % 2 == 0 && two > pair) pair = two;
          if (depthwise) ((int16_t*)weights)[t * h.lanes + g] = (int16_t)w;
          else weights[place(h, g, o, i, t)] = (int8_t)w;
        }
      if (magnitude * largest > kLargestSum) return kIntegerRefused;
      if (depthwise && magnitude * largest > pair) pair = magnitude * largest;
      start[depthwise ? g : g * h.lanes + o] = (int32_t)(-zero * total);
    }
  h.pair = (int32_t)pair;
  std::memcpy(blob, &h, sizeof h);
  return kIntegerDone;
}

// Codes (n) of x (n) on one grid (4): u, or q itself where `plain`.
QM_API int64_t qm_integer_quantize(const float* x, uint8_t* codes, int64_t n, const float* grid, int64_t zero,
                                   int64_t plain, int64_t threads) {
  if (!x || !codes || !grid || n < 0 || !within(zero, 1, 128)) return kIntegerRefused;
  constexpr int64_t kBlock = 16384;
  return run((n + kBlock - 1) / kBlock, threads, [&](int64_t i) {
    const int64_t first = i * kBlock, count = n - first < kBlock ? n - first : kBlock;
    integer_kernels().quantize(x + first, codes + first, count, grid, zero, plain);
    return true;
  });
}

// A linear layer over all pixels; kernel, stride, padding and dilation are 1, 1, 0 and 1.
QM_API int64_t qm_integer_linear(const IntegerArgs* args) {
  const IntegerArgs& a = *args;
  const bool plain = a.kernel[0] == 1 && a.kernel[1] == 1 && a.stride[0] == 1 && a.stride[1] == 1 && a.padding[0] == 0 &&
                     a.padding[1] == 0 && a.groups == 1;
  if (!plain || !args_good(a) || ((const PackedHead*)a.blob)->depthwise) return kIntegerRefused;
  const int64_t rows = a.batch * a.height * a.width;
  if (rows % a.x.grids) return kIntegerRefused;
  const int64_t each = rows / a.x.grids;  // rows on one grid
  constexpr int64_t kBlock = 192;
  const int64_t blocks = (each + kBlock - 1) / kBlock;
  return run(blocks * a.x.grids, a.threads, [&](int64_t i) {
    const int64_t from = i / blocks * each, first = from + i % blocks * kBlock, end = from + each;
    return integer_kernels().linear(a, first, first + kBlock < end ? first + kBlock : end);
  });
}

// A convolution.
QM_API int64_t qm_integer_conv(const IntegerArgs* args) {
  const IntegerArgs& a = *args;
  if (!args_good(a) || (a.x.grids != 1 && a.x.grids != a.batch)) return kIntegerRefused;
  // bands of rows: the rows that two bands share are quantized twice
  const int64_t bands = a.threads > 1 && a.out_height >= 2 * a.threads ? (a.threads < 8 ? 2 * a.threads : a.threads) : 1;
  return run(a.batch * bands, a.threads, [&](int64_t i) {
    const int64_t band = i % bands;
    return integer_kernels().convolve(a, i / bands, band * a.out_height / bands, (band + 1) * a.out_height / bands);
  });
}

// Batched products.
QM_API int64_t qm_integer_product(const IntegerProductArgs* args) {
  const IntegerProductArgs& p = *args;
  const bool good = rows_given(p.a) && rows_given(p.b) && p.a.grids == 1 && p.b.grids == 1 && p.out &&
                    within(p.sizes[0], 1, kMost) && within(p.sizes[1], 1, kMost) && within(p.rows, 1, kMost) &&
                    within(p.terms, 1, 1 << 16) && within(p.columns, 1, kMost) && within(p.out_stride, p.columns, kMost) &&
                    within(p.b_row, 0, kMost) && within(p.b_column, 0, kMost) && within(p.shifted, 0, 1);
  if (!good || 2 * p.a.zero * p.b.zero * p.terms > kLargestSum) return kIntegerRefused;
  return run(p.sizes[0] * p.sizes[1], p.threads,
             [&](int64_t i) { return integer_kernels().multiply(p, i / p.sizes[1], i % p.sizes[1]); });
}
