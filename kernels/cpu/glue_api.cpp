// C interface of the passes between integer operators. Rows are cut into blocks of a fixed size; sums of the blocks are
// added in their order, so the bits do not depend on the number of threads.

#include <cmath>
#include <vector>

#include "dls_grid.h"
#include "parallel.h"

namespace {

constexpr int64_t kBlockValues = 16384;  // small enough for the last block to keep few threads waiting

// Statistics of all blocks, and the grid that follows from them where there is a rule for it.
void conclude(const std::vector<ExactMoments>& parts, float* statistics, const GlueRule* rule, float* new_grid) {
  ExactMoments m = parts[0];
  for (size_t i = 1; i < parts.size(); i++) {
    const ExactMoments& p = parts[i];
    m.count += p.count, m.sum += p.sum, m.squares += p.squares;
    m.low = p.low < m.low ? p.low : m.low;
    m.high = p.high > m.high ? p.high : m.high;
  }
  const double mean = m.sum / m.count, rest = m.squares - m.sum * mean;
  const float spread = m.high - m.low;
  const float std = m.count < 2 ? 0.f : (float)std::sqrt((rest > 0 ? rest : 0) / (m.count - 1));
  const float row[4] = {(float)mean, std > spread ? spread : std, m.low, m.high};
  std::copy(row, row + 4, statistics);
  if (!rule) return;
  const Grid grid = dls_grid(row, rule->w, rule->v, rule->lowest, rule->highest, rule->cap_share);
  std::memcpy(new_grid, &grid, sizeof grid);
}

// task(first, last, moments or null) for blocks of rows.
template <typename Args, typename Task>
void by_blocks(const Args& a, int64_t block, const Task& task) {
  const int64_t blocks = (a.rows + block - 1) / block;
  std::vector<ExactMoments> parts(a.statistics ? blocks : 0);
  parallel(blocks, a.threads, [&](int64_t i) {
    const int64_t first = i * block, last = first + block < a.rows ? first + block : a.rows;
    task(first, last, a.statistics ? &parts[i] : nullptr);
  });
  if (a.statistics) conclude(parts, a.statistics, a.rule, a.new_grid);
}

bool fits(const void* map, int64_t stride, int64_t columns) { return !map || stride >= columns; }

bool quantizes(const void* codes, const float* grid, int64_t zero) { return !codes || (grid && zero >= 0 && zero <= 128); }

bool rule_fits(const float* statistics, const GlueRule* rule, const float* new_grid) {
  return !rule || (statistics && new_grid && rule->lowest <= rule->highest);
}

}  // namespace

// A pass over rows; a GlueStatus.
QM_API int64_t qm_glue_rows(const GlueArgs* args) {
  const GlueArgs& a = *args;
  const bool sized = a.rows > 0 && a.columns > 0 && a.columns <= kGlueBuffer && a.x && a.x_stride >= a.columns &&
                     fits(a.added, a.added_stride, a.columns) && fits(a.sum, a.sum_stride, a.columns) &&
                     fits(a.other, a.other_stride, a.columns) && fits(a.out, a.out_stride, a.columns) &&
                     fits(a.codes, a.codes_stride, a.columns) && fits(a.codes2, a.codes2_stride, a.columns);
  const bool known = a.activation >= kGlueNone && a.activation <= kGlueSigmoid &&
                     (!a.other || (a.combination >= kGlueMultiply && a.combination <= kGlueMultiplySilu));
  if (!sized || !known || !quantizes(a.codes, a.grid, a.zero) || !quantizes(a.codes2, a.grid2, a.zero2) ||
      !rule_fits(a.statistics, a.rule, a.new_grid))
    return kGlueRefused;
  const int64_t block = a.columns < kBlockValues / 16 ? kBlockValues / a.columns / 16 * 16 : 16;
  by_blocks(a, block, [&](int64_t first, int64_t last, ExactMoments* m) { kernels().glue.rows(a, first, last, m); });
  return kGlueDone;
}

// The steps of a scan from their codes; a GlueStatus.
QM_API int64_t qm_glue_delta(const DeltaArgs* args) {
  const DeltaArgs& a = *args;
  const bool sized = a.rows > 0 && a.directions > 0 && a.channels > 0 && a.rank > 0 && a.rank <= kMaxRank &&
                     a.directions * a.rank <= kDeltaCodes &&
                     a.dt_stride >= a.directions * a.rank && a.dt_zero >= 0 && a.dt_zero <= 128;
  if (!sized || !a.dt || !a.dt_grid || !a.weight || !a.scale || (a.factor && !a.ones) ||
      !quantizes(a.codes, a.grid, a.zero) || !rule_fits(a.statistics, a.rule, a.new_grid))
    return kGlueRefused;
  by_blocks(a, kDeltaRows,
            [&](int64_t first, int64_t last, ExactMoments* m) { kernels().glue.delta(a, first, last, m); });
  return kGlueDone;
}

// Channel attention; a GlueStatus.
QM_API int64_t qm_glue_attend(const AttendArgs* args) {
  const AttendArgs& a = *args;
  if (a.rows < 1 || a.columns < 1 || a.columns > kGlueBuffer || a.hidden < 1 || a.hidden > kGlueBuffer || !a.x ||
      a.x_stride < a.columns || !a.enter || !a.enter_bias || !a.leave || !a.leave_bias || !a.out)
    return kGlueRefused;
  const int64_t blocks = (a.rows + kAttendRows - 1) / kAttendRows;
  std::vector<double> sums(blocks * a.columns), hidden(a.hidden);
  parallel(blocks, a.threads, [&](int64_t i) {
    const int64_t first = i * kAttendRows, count = a.rows - first < kAttendRows ? a.rows - first : kAttendRows;
    kernels().glue.column_sums(a.x + first * a.x_stride, a.x_stride, count, a.columns, &sums[i * a.columns]);
  });
  for (int64_t c = 0; c < a.columns; c++) {
    for (int64_t i = 1; i < blocks; i++) sums[c] += sums[i * a.columns + c];
    sums[c] /= (double)a.rows;
  }
  for (int64_t h = 0; h < a.hidden; h++) {
    double total = a.enter_bias[h];
    for (int64_t c = 0; c < a.columns; c++) total += a.enter[h * a.columns + c] * sums[c];
    hidden[h] = total < 0 ? 0 : total;
  }
  for (int64_t c = 0; c < a.columns; c++) {
    double total = a.leave_bias[c];
    for (int64_t h = 0; h < a.hidden; h++) total += a.leave[c * a.hidden + h] * hidden[h];
    a.out[c] = (float)(1 / (1 + std::exp(-total)));
  }
  return kGlueDone;
}

// The prompt of every token; a GlueStatus.
QM_API int64_t qm_glue_route(const RouteArgs* args) {
  const RouteArgs& a = *args;
  const bool layers = a.x && a.inputs > 0 && a.x_stride >= a.inputs && a.hidden > 0 && a.hidden <= kMostHidden && a.enter &&
                      a.enter_bias && a.leave && a.leave_bias;
  if (a.rows < 1 || a.prompts < 1 || a.prompts > kMostPrompts || !(a.scores ? a.scores_stride >= a.prompts : layers) ||
      !a.uniform || !a.picked)
    return kGlueRefused;
  constexpr int64_t block = 512;
  parallel((a.rows + block - 1) / block, a.threads, [&](int64_t i) {
    kernels().glue.route(a, i * block, (i + 1) * block < a.rows ? (i + 1) * block : a.rows);
  });
  return kGlueDone;
}

// The next n numbers in [0, 1) of a generator of torch's, which goes on behind them; a GlueStatus.
QM_API int64_t qm_glue_uniform(TorchMersenne* state, float* out, int64_t n) {
  if (!state || !out || n < 1 || state->left < 1 || state->left > 624 || state->next > (uint64_t)(625 - state->left))
    return kGlueRefused;
  kernels().glue.uniform(*state, out, n);
  return kGlueDone;
}

// Stable order of tokens by their prompts, in range(prompts), and its inverse; a GlueStatus.
QM_API int64_t qm_glue_order(const int64_t* picked, int64_t rows, int64_t prompts, int32_t* order, int64_t* inverse) {
  if (rows < 1 || rows > INT32_MAX || prompts < 1 || prompts > kMostPrompts || !picked || !order || !inverse)
    return kGlueRefused;
  std::vector<int64_t> place(prompts + 1);
  for (int64_t m = 0; m < rows; m++) {
    if ((uint64_t)picked[m] >= (uint64_t)prompts) return kGlueRefused;
    place[picked[m] + 1]++;
  }
  for (int64_t t = 0; t < prompts; t++) place[t + 1] += place[t];
  for (int64_t m = 0; m < rows; m++) {
    const int64_t at = place[picked[m]]++;
    order[at] = (int32_t)m;
    inverse[m] = at;
  }
  return kGlueDone;
}
