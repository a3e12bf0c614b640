// What lies between two integer operators: residual sums, LayerNorm, activations, gates, quantizers and the statistics of
// DLS, in one pass over rows. The Python side (qmambair_basicsr/ops/glue/native.py) mirrors these structs field by field;
// change both, and qm_abi() in api.cpp.
#pragma once

#include <cstdint>

enum GlueActivation : int64_t { kGlueNone = 0, kGlueSilu = 1, kGlueGelu = 2, kGlueSigmoid = 3 };
enum GlueCombination : int64_t { kGlueMultiply = 1, kGlueAdd = 2, kGlueMultiplySilu = 3 };

// The learned rule of DLS: statistics -> grid, see ops/dls/README.md.
struct GlueRule {
  float w[4], v[4];
  float lowest, highest, cap_share;
};

// One pass over `rows` rows of `columns` values, steps in this order; a null pointer leaves a step out.
struct GlueArgs {
  int64_t rows, columns, threads;
  const float* x;
  int64_t x_stride;
  const float* x_scale;  // (columns): x * x_scale
  const float* added;    // + added * added_scale
  int64_t added_stride;
  const float* added_scale;  // (columns) or null for 1
  float* sum;                // the result so far
  int64_t sum_stride;
  const float* norm_weight;  // LayerNorm over the columns
  const float* norm_bias;
  double epsilon;
  int64_t activation;  // a GlueActivation
  const float* other;  // a GlueCombination with another map
  int64_t other_stride;
  int64_t combination;
  float* out;
  int64_t out_stride;
  uint8_t* codes;  // code + zero on grid (4): step, shift, lowest and highest code
  int64_t codes_stride;
  const float* grid;
  int64_t zero;
  uint8_t* codes2;  // the same values on a second grid
  int64_t codes2_stride;
  const float* grid2;
  int64_t zero2;
  float* statistics;     // (4): mean, unbiased standard deviation, minimum, maximum of all values
  const GlueRule* rule;  // with statistics: grid that follows from them ...
  float* new_grid;       // ... (4)
};

// delta = dt_projs(dt) of all directions, recomputed in each pass instead of stored.
struct DeltaArgs {
  int64_t rows, directions, channels, rank, threads;
  const uint8_t* dt;  // (rows, directions * rank), code + dt_zero
  int64_t dt_stride, dt_zero;
  const float* dt_grid;  // (4)
  const int8_t* weight;  // (K, D, R) codes
  const float* scale;    // (K, D)
  const float* factor;   // (K, D) times the sum of the row's codes, subtracted; or null
  const float* ones;     // (K) scale of that sum, with factor
  const float* sums;     // (K, D) times the shift of dt_grid, subtracted; or null
  const float* bias;     // (K, D) or null
  float* out;            // (rows, K, D), or null
  uint8_t* codes;        // (rows, K, D) on grid, or null
  const float* grid;
  int64_t zero;
  float* statistics;  // as above
  const GlueRule* rule;
  float* new_grid;
};

// Picks of a prompt for each of `rows` tokens: the first largest of scores - log(-log(uniform)). The scores are given, or
// they are those of two layers with a GELU between them; weights are input after input, outputs padded to `kRouteLanes`.
struct RouteArgs {
  int64_t rows, prompts, threads;
  const float* scores;  // or null
  int64_t scores_stride;
  const float* uniform;  // (rows, prompts) in [0, 1)
  int64_t* picked;       // (rows)
  const float* x;        // (rows, inputs)
  int64_t x_stride, inputs, hidden;
  const float *enter, *enter_bias;    // (inputs, hidden), (hidden)
  const float *leave, *leave_bias;    // (hidden, prompts), (prompts)
};

// How much each channel of a map counts: sigmoid(leave relu(enter mean + enter_bias) + leave_bias) of the mean over its rows.
struct AttendArgs {
  int64_t rows, columns, hidden, threads;
  const float* x;  // (rows, columns)
  int64_t x_stride;
  const float *enter, *enter_bias;  // (hidden, columns), (hidden)
  const float *leave, *leave_bias;  // (columns, hidden), (columns)
  float* out;                       // (columns)
};

// The state of torch's generator on a CPU as `get_state` gives it (its first fields): MT19937.
struct TorchMersenne {
  uint64_t seed;
  int32_t left, seeded;  // left - 1 words of this state are still to be used, from `next` on
  uint64_t next;
  uint64_t words[624];
};

// Sums in double, in which they are exact for all that matters: the order of the rows shows in no bit of the statistics.
struct ExactMoments {
  double count, sum, squares;
  float low, high;
};

struct GlueKernels {
  // rows [first, last)
  void (*rows)(const GlueArgs& args, int64_t first, int64_t last, ExactMoments* moments);
  void (*delta)(const DeltaArgs& args, int64_t first, int64_t last, ExactMoments* moments);
  void (*route)(const RouteArgs& args, int64_t first, int64_t last);
  void (*uniform)(TorchMersenne& state, float* out, int64_t n);
  // sums (columns) over rows of a map
  void (*column_sums)(const float* x, int64_t stride, int64_t rows, int64_t columns, double* sums);
};

constexpr int64_t kGlueBuffer = 4096;  // values of one block of rows, at least one row
constexpr int64_t kMaxRank = 64;
constexpr int64_t kDeltaCodes = 256;  // of a row of dt
constexpr int64_t kDeltaRows = 512;   // of a block
constexpr int64_t kAttendRows = 512;
constexpr int64_t kMostPrompts = 1024, kMostHidden = 512, kRouteLanes = 16;

enum GlueStatus : int64_t { kGlueDone = 0, kGlueRefused = 1 };
