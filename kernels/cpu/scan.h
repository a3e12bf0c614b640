// What a scan gets and gives. The Python side (qmambair_basicsr/ops/ss2d_scan/native.py) mirrors this struct field by
// field; change both, and qm_abi() in api.cpp.
#pragma once

#include <cstdint>

struct ScanArgs {
  int64_t batch, height, width, directions, channels, state;
  int64_t chunk;        // tokens between saved states
  int64_t groups;       // channel groups of the backward pass; each has its own share of dB and dC
  int64_t softplus;     // dt = softplus(delta + bias), else the sum
  int64_t save_states;  // a state after every chunk, else only the last one
  int64_t merge;        // directions run one after the other and add into one map; else one map per direction
  int64_t threads;
  int64_t trusted;       // the caller has checked that every row of `path` is a permutation; else it is checked here
  const int64_t* order;  // (K) 0 row-major, 1 column-major, 2 and 3 the same backwards; not read where there is a path
  const int32_t* path;   // (K, H * W) or null: raster positions in the order of the visit, a permutation per direction

  // input maps, channels (or states) contiguous; strides of batch, row, column, direction in elements
  const float* x;
  const float* delta;
  const float* B;
  const float* C;
  const float* dy;
  int64_t x_stride[4], delta_stride[4], B_stride[4], C_stride[4], dy_stride[4];

  const float* A;     // (K, N, D)
  const float* D;     // (K, D) or null
  const float* bias;  // (K, D) or null
  float* y;           // (B, H, W, D) when merged, else (B, H, W, K, D)
  float* dx;          // as y
  float* states;      // (B, K, chunks or 1, N, D)
  float* ddelta;      // (B, H, W, K, D)
  float* dB;          // (groups, B, H, W, K, N)
  float* dC;          // (groups, B, H, W, K, N)
  float* dA;          // (B, K, N, D)
  float* dD;          // (B, K, D)
  float* dbias;       // (B, K, D)
  // states as the read-out sees them: step (> 0), offset, smallest and largest code, lower and upper bound (NaN for none) of
  // their grid; null where they are not quantized
  const float* grid;
  double* dgrid;  // (groups, B, K, 4): gradients of step, offset, lower and upper bound
};

// What the C functions of the scan return.
enum ScanStatus : int64_t { kScanDone = 0, kScanNoMemory = 1, kScanBadOrder = 2 };

// Backward of channel group `group` of one image in one direction.
typedef bool ScanBackward(const ScanArgs& args, int64_t image, int64_t direction, int64_t group);

// One set of kernels per instruction set; api.cpp picks one at run time and spreads the tasks over threads.
struct ScanKernels {
  int width;  // channels of a block
  // forward of channels [first, last) of one image in one direction; whole blocks, but for the end of the channels
  void (*forward)(const ScanArgs& args, int64_t image, int64_t direction, int64_t first, int64_t last);
  ScanBackward* backward;
};

// Channels of backward group g are [group_begin(g), group_begin(g + 1)): the split depends on the shape alone, never on
// the CPU or the number of threads.
inline int64_t group_begin(const ScanArgs& a, int64_t g) {
  const int64_t blocks = (a.channels + 15) / 16;
  const int64_t first = g * blocks / a.groups * 16;
  return first < a.channels ? first : a.channels;
}
