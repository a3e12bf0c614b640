// What the integer operators get and give: products of activation codes q (8 bits or fewer) and weight codes p (2 to 8
// bits), summed up exactly in int32. The Python side (qmambair_basicsr/ops/integer/kernels.py) mirrors these structs field
// by field; change both, and qm_abi() in api.cpp.
//
// A code is stored as u = q + zero, one unsigned byte, zero = 2^(bits - 1): unsigned times signed bytes is what x86
// multiplies. What that adds to a sum, zero times the sum of the weights, is where the sum starts (`start` in a blob).
#pragma once

#include <cstdint>

// Kinds of rows of activations.
enum IntegerKind : int64_t { kFloatRows = 0, kCodeRows = 1, kSignedRows = 2 };  // float32; u; q itself as int8

// Rows of a map; `grid` is (grids, 4): step, shift, lowest, highest code. Rows are cut into `grids` equal parts, one per
// grid: images, or all in one.
struct IntegerRows {
  const void* data;
  int64_t kind, stride;  // elements between rows
  const float* grid;
  int64_t grids, zero;
};

constexpr int kCodeOutputs = 2;

// Behind the sums: y = sum * (step * scale) [- ones * factor] [- shift * sums] [+ bias], activation, + residual.
struct IntegerFinish {
  const float* scale;   // (groups, O + ones)
  const float* factor;  // (groups, O); with the channel of ones only
  const float* sums;    // (taps, groups * O) or null: what the shift of the input is multiplied by
  const float* bias;    // (groups, O) or null
  int64_t follows;      // sums are still to be multiplied by the shift of the grid
  int64_t activation;   // IntegerActivation
  const float* residual;
  int64_t residual_stride;
  const float* residual_scale;  // (1) or (O), or null for 1
  int64_t residual_scales;
  float* out;  // or null
  int64_t out_stride;
  uint8_t* codes[kCodeOutputs];  // or null
  int64_t codes_stride[kCodeOutputs];
  const float* codes_grid[kCodeOutputs];  // (4)
  int64_t codes_zero[kCodeOutputs];
};

enum IntegerActivation : int64_t { kNoActivation = 0, kSilu = 1, kGelu = 2 };

// A linear layer over batch * height * width rows, or a convolution of a channels-last map with zero padding (code q = 0).
struct IntegerArgs {
  IntegerRows x;
  int64_t batch, height, width, in;  // in: channels of all groups
  int64_t out_height, out_width, out;  // out: channels of all groups, without those of ones
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t groups, threads;
  const uint8_t* blob;
  int64_t blob_bytes;
  IntegerFinish finish;
};

// Batched product: a (n0, n1, M, K) times b (n0, n1, K, N) -> out (n0, n1, M, N), shifts taken into account.
struct IntegerProductArgs {
  int64_t sizes[2], rows, terms, columns, threads;
  IntegerRows a, b;                     // stride: between the rows of a; unused for b
  int64_t a_strides[2], b_strides[2];   // of the two leading dimensions
  int64_t b_row, b_column;              // of b's last two dimensions
  int64_t shifted;                      // take the shifts into account; otherwise the product of the codes' part alone
  float* out;
  int64_t out_strides[2], out_stride;   // of the leading dimensions, and between rows
};

// What the C interface returns.
enum IntegerStatus : int64_t { kIntegerDone = 0, kIntegerRefused = 1, kIntegerNoMemory = 2 };

// Head of a blob of packed weights; `start` (int32) and the weights follow.
struct PackedHead {
  int32_t magic, depthwise, groups, out, in, taps, zero, ones;  // out and in of one group, out with the channel of ones
  int32_t lanes, steps;  // padded output channels of a group; groups of four input channels, over one tap
  int32_t pair;          // no sum of two neighbouring products (depthwise: of all) is larger in magnitude
  int32_t unused[5];
};
static_assert(sizeof(PackedHead) == 64, "weights follow at a multiple of 64 bytes");

constexpr int32_t kPackedMagic = 0x514d4931;
constexpr int64_t kPanel = 16;           // output channels that are packed side by side
constexpr int64_t kLargestSum = 1 << 30;  // of the magnitudes of all products

struct IntegerKernels {
  const char* name;
  bool (*linear)(const IntegerArgs& args, int64_t first, int64_t last);  // rows, on one grid; false: no memory
  bool (*convolve)(const IntegerArgs& args, int64_t image, int64_t first, int64_t last);  // rows of the output map
  bool (*multiply)(const IntegerProductArgs& args, int64_t index0, int64_t index1);
  // u, or q itself where `plain`
  void (*quantize)(const float* x, uint8_t* codes, int64_t n, const float* grid, int64_t zero, bool plain);
};

extern const IntegerKernels integer_portable;
extern const IntegerKernels integer_avx2;
extern const IntegerKernels integer_avxvnni;
extern const IntegerKernels integer_avx512;
extern const IntegerKernels integer_dotprod;
