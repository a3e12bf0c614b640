// What the quantizer kernels get and give; formulas in qmambair_basicsr/ops/{lsq,dls,rfa}/README.md.
#pragma once

#include <cstdint>

// A grid: codes lo..hi of width `step`; value (code - offset / step) * step.
struct Grid {
  float step, offset, lo, hi;
};

// Sums over a stretch of values that the backward pass of a grid needs.
struct GridSums {
  double step, offset;  // sum G (q - v I), sum G (I - 1)
  int64_t lowest, highest;  // values equal to the extremes (DLS)
};

// Count, mean, sum of squared deviations, extremes; all NaN if a value is.
struct Moments {
  double count, mean, m2;
  float low, high;
};

constexpr int kMaxLevels = 256;

// What the C interface returns.
enum QuantStatus : int64_t { kQuantDone = 0, kQuantRefused = 1 };

// One tensor of a call; a call takes any number of them. Pointers that a pass does not need may be null. A `floor` below 0
// takes the step as it is, otherwise the step in use is max(|scale|, floor).

// x (rows, cols); scale and offset (params) with params dividing rows: row r uses entry r % params. offset may be null.
struct LsqItem {
  const float *x, *grad;
  float *out, *dx;
  const float *scale, *offset;
  float *d_scale, *d_offset;
  int64_t rows, cols, params;
  double floor, grad_scale;
  float qmin, qmax;
};

// x (rows, cols); w and v (4); stats and grid (rows, 4); d_w and d_v (4).
struct DlsItem {
  const float *x, *grad;
  float *out, *dx;
  const float *w, *v;
  float *stats, *grid, *d_w, *d_v;
  int64_t rows, cols;
  double cap_share, grad_scale;
  float qmin, qmax;
};

// w (n); scale and offset (1); thresholds (levels), put in order with gaps of min_gap unless that is below 0.
struct RfaItem {
  const float *w, *grad;
  float *out, *dw;
  const float *scale, *offset, *thresholds;
  float *d_scale, *d_offset, *d_thresholds;
  int64_t n, levels;
  double floor, grad_scale, min_gap;
  float qmin, unused;
};

// Tables of RFA, worked out once per call from the thresholds. The borders are suffix minima of midpoints and
// thresholds: the last border a value exceeds decides, and these are sorted whatever the thresholds are.
struct RfaTables {
  int64_t levels;
  float step, offset, zero, qmin;
  float midpoints[kMaxLevels];   // levels - 1
  float thresholds[kMaxLevels];  // levels
  float slope[kMaxLevels + 1];   // of bin b: below the first threshold, between b - 1 and b, above the last
  float start[kMaxLevels + 1];   // threshold on the left of bin b
};

struct RfaSums {
  double step, offset;
  double total[kMaxLevels + 1];  // sum of G in each bin
  double right[kMaxLevels + 1];  // sum of G times the way from the left threshold to the right one
};

struct QuantKernels {
  Moments (*moments)(const float* x, int64_t n);
  void (*quantize)(const float* x, float* y, int64_t n, const Grid& grid);
  // dx may be null; low and high are the extremes to count
  GridSums (*grid_sums)(const float* grad, const float* x, float* dx, int64_t n, const Grid& grid, float low, float high);
  // dx = G I + constant + slope x + at_low [x = low] + at_high [x = high]
  void (*grid_input)(const float* grad, const float* x, float* dx, int64_t n, const Grid& grid, float constant, float slope,
                     float low, float at_low, float high, float at_high);
  void (*rfa_forward)(const float* w, float* y, int64_t n, const RfaTables& tables);
  void (*rfa_backward)(const float* grad, const float* w, float* dw, int64_t n, const RfaTables& tables, RfaSums* sums);
};
