// C interface of the quantizer kernels; each function returns a QuantStatus. Tensors are cut into blocks of a fixed size;
// sums of the blocks are added in their order, so the bits do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "dls_grid.h"
#include "parallel.h"

namespace {

constexpr int64_t kBlock = 16384;

// Calls task(block, row, first, count) for the blocks of a (rows, cols) array.
template <typename Task>
void for_blocks(int64_t rows, int64_t cols, int64_t threads, const Task& task) {
  const int64_t per_row = (cols + kBlock - 1) / kBlock;
  const int64_t useful = rows * cols / kBlock + 1;  // threads cost more than they bring below that
  parallel(rows * per_row, threads < useful ? threads : useful, [&](int64_t i) {
    const int64_t row = i / per_row, first = i % per_row * kBlock;
    task(i, row, row * cols + first, cols - first < kBlock ? cols - first : kBlock);
  });
}

Moments merge(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, gap = b.mean - a.mean;
  Moments m = {count, a.mean + gap * b.count / count, a.m2 + b.m2 + gap * gap * a.count * b.count / count, a.low, a.high};
  m.low = b.low < m.low || b.low != b.low ? b.low : m.low;
  m.high = b.high > m.high || b.high != b.high ? b.high : m.high;
  return m;
}

// Gradients of step and offset of one group carried back to its statistics (4), and added to dw and dv.
void dls_grid_backward(double d_step, double d_offset, const float* stats, const Grid& grid, const float* w, const float* v,
                       double cap_share, double* d_stats, double* dw, double* dv) {
  const double mean = stats[0], std = stats[1], low = stats[2], high = stats[3], offset = grid.offset;
  const DlsStep s = dls_step(stats, offset, w, cap_share);
  const double ratio = grid.step / s.p, power = ratio * ratio * ratio * ratio * ratio;
  const double d_raw = s.raw < 0 ? -d_step * power : d_step * power;
  const double shifted = mean + offset;
  const double terms[4] = {std::fabs(shifted), std, low + offset, high + offset};
  const double d_shifted = d_raw * w[0] * (shifted > 0 ? 1 : shifted < 0 ? -1 : shifted);
  d_offset += d_shifted + d_raw * ((double)w[2] + w[3]);
  const double direct[4] = {d_shifted, d_raw * w[1], d_raw * w[2], d_raw * w[3]};
  for (int i = 0; i < 4; i++) {
    dw[i] += d_raw * terms[i];
    dv[i] += d_offset * stats[i];
    d_stats[i] = direct[i] + d_offset * v[i];
  }
}

Grid lsq_grid(const float* step, const float* offset, int64_t i, float qmin, float qmax) {
  return {step[i], offset ? offset[i] : 0.f, qmin, qmax};
}

// Whether an array (rows, cols) has values, and the bounds of the codes are bounds.
bool sized(int64_t rows, int64_t cols, float qmin, float qmax) { return rows > 0 && cols > 0 && qmin <= qmax; }

RfaTables rfa_tables(const float* thresholds, int64_t levels, float step, float offset, float qmin) {
  RfaTables t = {};
  t.levels = levels, t.step = step, t.offset = offset, t.zero = offset / step, t.qmin = qmin;
  const int last = (int)levels - 1;
  for (int i = 0; i < last; i++) {
    t.midpoints[i] = (thresholds[i] + thresholds[i + 1]) / 2;
    t.slope[i + 1] = 1.f / (thresholds[i + 1] - thresholds[i]);
    t.start[i + 1] = thresholds[i];
  }
  t.slope[0] = t.slope[levels] = 0.1f;
  t.start[0] = thresholds[0];
  t.start[levels] = thresholds[last];
  std::copy(thresholds, thresholds + levels, t.thresholds);
  for (int i = last - 2; i >= 0; i--) t.midpoints[i] = std::min(t.midpoints[i], t.midpoints[i + 1]);
  for (int i = last - 1; i >= 0; i--) t.thresholds[i] = std::min(t.thresholds[i], t.thresholds[i + 1]);
  return t;
}

}  // namespace

// x (rows, cols); step and offset (params) with params dividing rows: row r uses entry r % params. offset may be null.
QM_API int64_t qm_lsq_forward(const float* x, float* y, int64_t rows, int64_t cols, const float* step, const float* offset,
                              int64_t params, float qmin, float qmax, int64_t threads) {
  if (!sized(rows, cols, qmin, qmax) || params < 1 || rows % params || !x || !y || !step) return kQuantRefused;
  for_blocks(rows, cols, threads, [&](int64_t, int64_t row, int64_t at, int64_t n) {
    kernels().quant.quantize(x + at, y + at, n, lsq_grid(step, offset, row % params, qmin, qmax));
  });
  return kQuantDone;
}

QM_API int64_t qm_lsq_backward(const float* grad, const float* x, float* dx, int64_t rows, int64_t cols,
                               const float* step, const float* offset, int64_t params, float qmin, float qmax,
                               float* d_step, float* d_offset, int64_t threads) {
  if (!sized(rows, cols, qmin, qmax) || params < 1 || rows % params) return kQuantRefused;
  if (!grad || !x || !dx || !step || !d_step) return kQuantRefused;
  const int64_t per_row = (cols + kBlock - 1) / kBlock;
  std::vector<GridSums> parts(rows * per_row);
  for_blocks(rows, cols, threads, [&](int64_t block, int64_t row, int64_t at, int64_t n) {
    const Grid grid = lsq_grid(step, offset, row % params, qmin, qmax);
    parts[block] = kernels().quant.grid_sums(grad + at, x + at, dx + at, n, grid, 0.f, 0.f);
  });
  std::vector<double> sums(2 * params);
  for (int64_t i = 0; i < rows * per_row; i++) {
    const int64_t p = i / per_row % params;
    sums[2 * p] += parts[i].step, sums[2 * p + 1] += parts[i].offset;
  }
  for (int64_t p = 0; p < params; p++) {
    d_step[p] = (float)sums[2 * p];
    if (d_offset) d_offset[p] = (float)sums[2 * p + 1];
  }
  return kQuantDone;
}

// x (rows, cols), w and v (4); stats and grid (rows, 4).
QM_API int64_t qm_dls_forward(const float* x, float* y, int64_t rows, int64_t cols, const float* w, const float* v,
                              float qmin, float qmax, double cap_share, float* stats, float* grid, int64_t threads) {
  if (!sized(rows, cols, qmin, qmax) || !x || !y || !w || !v || !stats || !grid) return kQuantRefused;
  const int64_t per_row = (cols + kBlock - 1) / kBlock;
  std::vector<Moments> parts(rows * per_row);
  for_blocks(rows, cols, threads, [&](int64_t block, int64_t, int64_t at, int64_t n) {
    parts[block] = kernels().quant.moments(x + at, n);
  });
  std::vector<Grid> grids(rows);
  for (int64_t r = 0; r < rows; r++) {
    Moments m = parts[r * per_row];
    for (int64_t i = 1; i < per_row; i++) m = merge(m, parts[r * per_row + i]);
    const float spread = m.high - m.low;
    const float std = cols == 1 ? m.low - m.low : (float)std::sqrt(m.m2 / (double)(cols - 1));
    const float row[4] = {(float)m.mean, std > spread ? spread : std, m.low, m.high};
    std::copy(row, row + 4, stats + 4 * r);
    grids[r] = dls_grid(row, w, v, qmin, qmax, cap_share);
    std::memcpy(grid + 4 * r, &grids[r], sizeof(Grid));
  }
  for_blocks(rows, cols, threads, [&](int64_t, int64_t row, int64_t at, int64_t n) {
    kernels().quant.quantize(x + at, y + at, n, grids[row]);
  });
  return kQuantDone;
}

QM_API int64_t qm_dls_backward(const float* grad, const float* x, float* dx, int64_t rows, int64_t cols, const float* w,
                               const float* v, const float* stats, const float* grid, double cap_share,
                               double grad_scale, float* dw, float* dv, int64_t threads) {
  if (!sized(rows, cols, 0, 0) || !grad || !x || !dx || !w || !v || !stats || !grid || !dw || !dv) return kQuantRefused;
  const int64_t per_row = (cols + kBlock - 1) / kBlock;
  std::vector<GridSums> parts(rows * per_row);
  std::vector<Grid> grids(rows);
  std::memcpy(grids.data(), grid, rows * sizeof(Grid));
  for_blocks(rows, cols, threads, [&](int64_t block, int64_t row, int64_t at, int64_t n) {
    const float *s = stats + 4 * row;
    parts[block] = kernels().quant.grid_sums(grad + at, x + at, nullptr, n, grids[row], s[2], s[3]);
  });
  struct Linear {
    float constant, slope, at_low, at_high;
  };
  std::vector<Linear> linear(rows);
  double to_w[4] = {}, to_v[4] = {};
  for (int64_t r = 0; r < rows; r++) {
    GridSums sum = {};
    for (int64_t i = 0; i < per_row; i++) {
      const GridSums& part = parts[r * per_row + i];
      sum.step += part.step, sum.offset += part.offset;
      sum.lowest += part.lowest, sum.highest += part.highest;
    }
    const float* s = stats + 4 * r;
    double d[4];
    dls_grid_backward(sum.step * grad_scale, sum.offset, s, grids[r], w, v, cap_share, d, to_w, to_v);
    const double slope = s[1] == 0 ? 0 : d[1] / ((double)s[1] * (double)std::max<int64_t>(cols - 1, 1));
    linear[r] = {(float)(d[0] / (double)cols - slope * s[0]), (float)slope, (float)(d[2] / (double)sum.lowest),
                 (float)(d[3] / (double)sum.highest)};
  }
  for (int i = 0; i < 4; i++) dw[i] = (float)to_w[i], dv[i] = (float)to_v[i];
  for_blocks(rows, cols, threads, [&](int64_t, int64_t row, int64_t at, int64_t n) {
    const Linear& l = linear[row];
    const float* s = stats + 4 * row;
    kernels().quant.grid_input(grad + at, x + at, dx + at, n, grids[row], l.constant, l.slope, s[2], l.at_low, s[3],
                               l.at_high);
  });
  return kQuantDone;
}

// w (n); step and offset (1); thresholds (levels).
QM_API int64_t qm_rfa_forward(const float* w, float* y, int64_t n, const float* step, const float* offset,
                              const float* thresholds, int64_t levels, float qmin, int64_t threads) {
  if (!sized(1, n, qmin, qmin) || levels < 2 || levels > kMaxLevels) return kQuantRefused;
  if (!w || !y || !step || !offset || !thresholds) return kQuantRefused;
  const RfaTables tables = rfa_tables(thresholds, levels, *step, *offset, qmin);
  for_blocks(1, n, threads, [&](int64_t, int64_t, int64_t at, int64_t count) {
    kernels().quant.rfa_forward(w + at, y + at, count, tables);
  });
  return kQuantDone;
}

QM_API int64_t qm_rfa_backward(const float* grad, const float* w, float* dw, int64_t n, const float* step,
                               const float* offset, const float* thresholds, int64_t levels, float qmin, float* d_step,
                               float* d_offset, float* d_thresholds, int64_t threads) {
  if (!sized(1, n, qmin, qmin) || levels < 2 || levels > kMaxLevels) return kQuantRefused;
  if (!grad || !w || !dw || !step || !offset || !thresholds || !d_step || !d_offset || !d_thresholds) return kQuantRefused;
  const RfaTables tables = rfa_tables(thresholds, levels, *step, *offset, qmin);
  std::vector<RfaSums> parts((n + kBlock - 1) / kBlock);
  for_blocks(1, n, threads, [&](int64_t block, int64_t, int64_t at, int64_t count) {
    kernels().quant.rfa_backward(grad + at, w + at, dw + at, count, tables, &parts[block]);
  });
  RfaSums sum = {};
  for (const RfaSums& part : parts) {
    sum.step += part.step, sum.offset += part.offset;
    for (int64_t b = 0; b <= levels; b++) sum.total[b] += part.total[b], sum.right[b] += part.right[b];
  }
  *d_step = (float)sum.step;
  *d_offset = (float)sum.offset;
  std::vector<double> d(levels);
  d[0] = -0.1 * sum.total[0];
  d[levels - 1] += -0.1 * sum.total[levels];
  for (int64_t b = 1; b < levels; b++) {  // the share u of bin b moves its right threshold, 1 - u the left one
    const double gap = (double)thresholds[b] - (double)thresholds[b - 1];
    d[b - 1] -= (sum.total[b] - sum.right[b]) / gap;
    d[b] -= sum.right[b] / gap;
  }
  for (int64_t b = 0; b < levels; b++) d_thresholds[b] = (float)(d[b] * *step);
  return kQuantDone;
}
