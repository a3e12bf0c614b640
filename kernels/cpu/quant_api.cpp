// C interface of the quantizer kernels; each function takes any number of tensors and returns a QuantStatus. Tensors are cut
// into blocks of a fixed size; sums of the blocks are added in their order, so the bits depend neither on the number of
// threads nor on the tensors beside them.

#include <vector>

#include "parallel.h"
#include "quant_tables.h"

namespace {

constexpr int64_t kBlock = 16384;

// The blocks of several (rows, cols) arrays one after the other.
class Blocks {
 public:
  void add(int64_t rows, int64_t cols) {
    arrays_.push_back({count_, (cols + kBlock - 1) / kBlock, cols});
    count_ += rows * arrays_.back().per_row;
    values_ += rows * cols;
  }
  int64_t count() const { return count_; }
  int64_t first(int64_t item) const { return arrays_[item].first; }
  int64_t per_row(int64_t item) const { return arrays_[item].per_row; }

  // Calls task(block, item, row, first value, count) for all of them.
  template <typename Task>
  void each(int64_t threads, const Task& task) const {
    const int64_t useful = values_ / kBlock + 1;  // threads cost more than they bring below that
    parallel(count_, threads < useful ? threads : useful, [&](int64_t i) {
      const auto after = [](int64_t block, const Array& array) { return block < array.first; };
      const int64_t item = std::upper_bound(arrays_.begin(), arrays_.end(), i, after) - arrays_.begin() - 1;
      const Array& a = arrays_[item];
      const int64_t row = (i - a.first) / a.per_row, start = (i - a.first) % a.per_row * kBlock;
      task(i, item, row, row * a.cols + start, std::min(a.cols - start, kBlock));
    });
  }

 private:
  struct Array {
    int64_t first, per_row, cols;
  };
  std::vector<Array> arrays_;
  int64_t count_ = 0, values_ = 0;
};

Grid lsq_grid(const LsqItem& t, int64_t row) {
  const int64_t i = row % t.params;
  return {step_in_use(t.scale[i], t.floor), t.offset ? t.offset[i] : 0.f, t.qmin, t.qmax};
}

// Whether an array (rows, cols) has values, and the bounds of the codes are bounds.
bool sized(int64_t rows, int64_t cols, float qmin, float qmax) { return rows > 0 && cols > 0 && qmin <= qmax; }

bool valid(const LsqItem& t) {
  return sized(t.rows, t.cols, t.qmin, t.qmax) && t.params >= 1 && t.rows % t.params == 0 && t.x && t.scale;
}

bool valid(const DlsItem& t) {
  return sized(t.rows, t.cols, t.qmin, t.qmax) && t.x && t.w && t.v && t.stats && t.grid;
}

bool valid(const RfaItem& t) {
  return sized(1, t.n, t.qmin, t.qmin) && t.levels >= 2 && t.levels <= kMaxLevels && t.w && t.scale && t.offset &&
         t.thresholds;
}

// Whether a call makes sense, and every item has what `needed` asks for.
template <typename Item, typename Needed>
bool valid(const Item* items, int64_t count, const Needed& needed) {
  if (!items || count < 1) return false;
  return std::all_of(items, items + count, [&](const Item& t) { return valid(t) && needed(t); });
}

}  // namespace

QM_API int64_t qm_lsq_forward(const LsqItem* items, int64_t count, int64_t threads) {
  if (!valid(items, count, [](const LsqItem& t) { return t.out; })) return kQuantRefused;
  Blocks blocks;
  for (int64_t i = 0; i < count; i++) blocks.add(items[i].rows, items[i].cols);
  blocks.each(threads, [&](int64_t, int64_t item, int64_t row, int64_t at, int64_t n) {
    const LsqItem& t = items[item];
    kernels().quant.quantize(t.x + at, t.out + at, n, lsq_grid(t, row));
  });
  return kQuantDone;
}

QM_API int64_t qm_lsq_backward(const LsqItem* items, int64_t count, int64_t threads) {
  if (!valid(items, count, [](const LsqItem& t) { return t.grad && t.dx && t.d_scale; })) return kQuantRefused;
  Blocks blocks;
  for (int64_t i = 0; i < count; i++) blocks.add(items[i].rows, items[i].cols);
  std::vector<GridSums> parts(blocks.count());
  blocks.each(threads, [&](int64_t block, int64_t item, int64_t row, int64_t at, int64_t n) {
    const LsqItem& t = items[item];
    parts[block] = kernels().quant.grid_sums(t.grad + at, t.x + at, t.dx + at, n, lsq_grid(t, row), 0.f, 0.f);
  });
  for (int64_t item = 0; item < count; item++) {
    const LsqItem& t = items[item];
    const int64_t per_row = blocks.per_row(item);
    std::vector<double> sums(2 * t.params);
    for (int64_t i = 0; i < t.rows * per_row; i++) {
      const GridSums& part = parts[blocks.first(item) + i];
      const int64_t p = i / per_row % t.params;
      sums[2 * p] += part.step, sums[2 * p + 1] += part.offset;
    }
    for (int64_t p = 0; p < t.params; p++) {
      t.d_scale[p] = step_gradient(sums[2 * p], t.scale[p], t.floor, t.grad_scale);
      if (t.d_offset) t.d_offset[p] = (float)sums[2 * p + 1];
    }
  }
  return kQuantDone;
}

QM_API int64_t qm_dls_forward(const DlsItem* items, int64_t count, int64_t threads) {
  if (!valid(items, count, [](const DlsItem& t) { return t.out; })) return kQuantRefused;
  Blocks blocks;
  for (int64_t i = 0; i < count; i++) blocks.add(items[i].rows, items[i].cols);
  std::vector<Moments> parts(blocks.count());
  blocks.each(threads, [&](int64_t block, int64_t item, int64_t, int64_t at, int64_t n) {
    parts[block] = kernels().quant.moments(items[item].x + at, n);
  });
  for (int64_t item = 0; item < count; item++) {
    const DlsItem& t = items[item];
    const int64_t per_row = blocks.per_row(item);
    for (int64_t r = 0; r < t.rows; r++) {
      const Moments* row = &parts[blocks.first(item) + r * per_row];
      Moments m = row[0];
      for (int64_t i = 1; i < per_row; i++) m = merge(m, row[i]);
      const float spread = m.high - m.low;
      const float std = t.cols == 1 ? m.low - m.low : (float)std::sqrt(m.m2 / (double)(t.cols - 1));
      const float stats[4] = {(float)m.mean, std > spread ? spread : std, m.low, m.high};
      std::copy(stats, stats + 4, t.stats + 4 * r);
      const Grid grid = dls_grid(stats, t.w, t.v, t.qmin, t.qmax, t.cap_share);
      std::memcpy(t.grid + 4 * r, &grid, sizeof(Grid));
    }
  }
  blocks.each(threads, [&](int64_t, int64_t item, int64_t row, int64_t at, int64_t n) {
    const DlsItem& t = items[item];
    const float* g = t.grid + 4 * row;
    kernels().quant.quantize(t.x + at, t.out + at, n, {g[0], g[1], g[2], g[3]});
  });
  return kQuantDone;
}

QM_API int64_t qm_dls_backward(const DlsItem* items, int64_t count, int64_t threads) {
  if (!valid(items, count, [](const DlsItem& t) { return t.grad && t.dx && t.d_w && t.d_v; })) return kQuantRefused;
  Blocks blocks;
  for (int64_t i = 0; i < count; i++) blocks.add(items[i].rows, items[i].cols);
  std::vector<GridSums> parts(blocks.count());
  blocks.each(threads, [&](int64_t block, int64_t item, int64_t row, int64_t at, int64_t n) {
    const DlsItem& t = items[item];
    const float *s = t.stats + 4 * row, *g = t.grid + 4 * row;
    parts[block] = kernels().quant.grid_sums(t.grad + at, t.x + at, nullptr, n, {g[0], g[1], g[2], g[3]}, s[2], s[3]);
  });
  struct Linear {
    float constant, slope, at_low, at_high;
  };
  std::vector<std::vector<Linear>> linear(count);
  for (int64_t item = 0; item < count; item++) {
    const DlsItem& t = items[item];
    const int64_t per_row = blocks.per_row(item);
    double to_w[4] = {}, to_v[4] = {};
    for (int64_t r = 0; r < t.rows; r++) {
      GridSums sum = {};
      for (int64_t i = 0; i < per_row; i++) {
        const GridSums& part = parts[blocks.first(item) + r * per_row + i];
        sum.step += part.step, sum.offset += part.offset;
        sum.lowest += part.lowest, sum.highest += part.highest;
      }
      const float *s = t.stats + 4 * r, *g = t.grid + 4 * r;
      double d[4];
      dls_grid_backward(sum.step * t.grad_scale, sum.offset, s, {g[0], g[1], g[2], g[3]}, t.w, t.v, t.cap_share, d, to_w,
                        to_v);
      const double slope = s[1] == 0 ? 0 : d[1] / ((double)s[1] * (double)std::max<int64_t>(t.cols - 1, 1));
      linear[item].push_back({(float)(d[0] / (double)t.cols - slope * s[0]), (float)slope,
                              (float)(d[2] / (double)sum.lowest), (float)(d[3] / (double)sum.highest)});
    }
    for (int i = 0; i < 4; i++) t.d_w[i] = (float)to_w[i], t.d_v[i] = (float)to_v[i];
  }
  blocks.each(threads, [&](int64_t, int64_t item, int64_t row, int64_t at, int64_t n) {
    const DlsItem& t = items[item];
    const Linear& l = linear[item][row];
    const float *s = t.stats + 4 * row, *g = t.grid + 4 * row;
    kernels().quant.grid_input(t.grad + at, t.x + at, t.dx + at, n, {g[0], g[1], g[2], g[3]}, l.constant, l.slope, s[2],
                               l.at_low, s[3], l.at_high);
  });
  return kQuantDone;
}

QM_API int64_t qm_rfa_forward(const RfaItem* items, int64_t count, int64_t threads) {
  if (!valid(items, count, [](const RfaItem& t) { return t.out; })) return kQuantRefused;
  Blocks blocks;
  std::vector<RfaTables> tables(count);
  for (int64_t i = 0; i < count; i++) {
    const RfaItem& t = items[i];
    blocks.add(1, t.n);
    const Order order = rfa_order(t.thresholds, t.levels, t.min_gap);
    tables[i] = rfa_tables(order.thresholds.data(), t.levels, step_in_use(*t.scale, t.floor), *t.offset, t.qmin);
  }
  blocks.each(threads, [&](int64_t, int64_t item, int64_t, int64_t at, int64_t n) {
    kernels().quant.rfa_forward(items[item].w + at, items[item].out + at, n, tables[item]);
  });
  return kQuantDone;
}

QM_API int64_t qm_rfa_backward(const RfaItem* items, int64_t count, int64_t threads) {
  const auto needed = [](const RfaItem& t) { return t.grad && t.dw && t.d_scale && t.d_offset && t.d_thresholds; };
  if (!valid(items, count, needed)) return kQuantRefused;
  Blocks blocks;
  std::vector<RfaTables> tables(count);
  std::vector<Order> orders(count);
  for (int64_t i = 0; i < count; i++) {
    const RfaItem& t = items[i];
    blocks.add(1, t.n);
    orders[i] = rfa_order(t.thresholds, t.levels, t.min_gap);
    tables[i] = rfa_tables(orders[i].thresholds.data(), t.levels, step_in_use(*t.scale, t.floor), *t.offset, t.qmin);
  }
  std::vector<RfaSums> parts(blocks.count());
  blocks.each(threads, [&](int64_t block, int64_t item, int64_t, int64_t at, int64_t n) {
    const RfaItem& t = items[item];
    kernels().quant.rfa_backward(t.grad + at, t.w + at, t.dw + at, n, tables[item], &parts[block]);
  });
  for (int64_t item = 0; item < count; item++) {
    const RfaItem& t = items[item];
    RfaSums sum = {};
    for (int64_t i = 0; i < blocks.per_row(item); i++) {
      const RfaSums& part = parts[blocks.first(item) + i];
      sum.step += part.step, sum.offset += part.offset;
      for (int64_t b = 0; b <= t.levels; b++) sum.total[b] += part.total[b], sum.right[b] += part.right[b];
    }
    *t.d_scale = step_gradient(sum.step, *t.scale, t.floor, t.grad_scale);
    *t.d_offset = (float)sum.offset;
    const std::vector<float>& thresholds = orders[item].thresholds;
    std::vector<double> d(t.levels);
    d[0] = -0.1 * sum.total[0];
    d[t.levels - 1] += -0.1 * sum.total[t.levels];
    for (int64_t b = 1; b < t.levels; b++) {  // the share u of bin b moves its right threshold, 1 - u the left one
      const double gap = (double)thresholds[b] - (double)thresholds[b - 1];
      d[b - 1] -= (sum.total[b] - sum.right[b]) / gap;
      d[b] -= sum.right[b] / gap;
    }
    std::fill(t.d_thresholds, t.d_thresholds + t.levels, 0.f);
    for (int64_t b = 0; b < t.levels; b++) t.d_thresholds[orders[item].source[b]] += (float)(d[b] * tables[item].step);
  }
  return kQuantDone;
}

// Whether one of n values equals a or b; NaN equals nothing.
QM_API int64_t qm_any_equal(const float* x, int64_t n, double a, double b) {
  const float first = (float)a, second = (float)b;
  for (int64_t i = 0; i < n; i += 1024) {
    const int64_t end = i + 1024 < n ? i + 1024 : n;
    int32_t found = 0;
    for (int64_t j = i; j < end; j++) found |= (x[j] == first) | (x[j] == second);
    if (found) return 1;
  }
  return 0;
}
