// What a scan on codes gets and gives. The Python side (qmambair_basicsr/ops/table_scan/native.py) mirrors these structs
// field by field; change both, and qm_abi() in api.cpp.
#pragma once

#include <cstdint>

// How the values of an operand are stored.
enum OperandKind : int64_t {
  kValues = 0,      // float32, taken as they are
  kCodes = 1,       // uint8: code + zero
  kOnEntering = 2,  // float32, put on the grid as they are read
};

// A map whose values lie on a grid, channels (or states) contiguous.
struct Operand {
  const void* data;
  int64_t kind;
  const float* grid;     // per image or one for all: step, offset, lowest and highest code; null for kValues
  int64_t grid_stride;   // 4 or 0
  int64_t bits;          // 1 to 8; zero = 2^(bits - 1)
  int64_t stride[4];     // of batch, row, column, direction in elements
};

struct TableScanArgs {
  int64_t batch, height, width, directions, channels, state;
  int64_t row;       // floats of a row of decays: table_row(state)
  int64_t merge;     // directions add into one map, or `parts` of them; else one map per direction
  int64_t parts;     // maps that merged directions are dealt out to: part_begin; 1 where they are not merged
  int64_t threads;
  int64_t trusted;       // as in ScanArgs
  const int64_t* order;  // as in ScanArgs
  const int32_t* path;   // as in ScanArgs
  Operand x, delta, B, C;
  const float* decays;  // (G, K, D, levels, row), levels = table_levels(bits): exp(dt A) - 1 of each code of delta
                        // (plus 2^(bits - 1)), zero beyond the states
  const float* steps;   // (G, K, D, levels): dt
  int64_t decays_stride, steps_stride;  // of G in elements; 0 where one table serves every image
  const float* D;       // (K, D) or null
  float* y;             // (parts, B, H, W, D) when merged, else (B, H, W, K, D)
};

// The tables of a scan.
struct ScanTablesArgs {
  int64_t groups, directions, channels, state, row, bits;
  int64_t softplus;     // dt = softplus(delta + bias), else the sum
  int64_t threads;
  const float* grid;    // (G, 4)
  const float* A;       // (K, D, N)
  const float* bias;    // (K, D) or null
  float* decays;        // (G, K, D, levels, row)
  float* steps;         // (G, K, D, levels)
};

// Floats of a row of decays with so many states: whole vectors of every instruction set.
inline int64_t table_row(int64_t state) { return state <= 4 ? 4 : state <= 8 ? 8 : (state + 15) / 16 * 16; }

// Rows of a table: those of 4 bits at least, so that a table of 4 bits and fewer has one shape.
inline int64_t table_levels(int64_t bits) { return bits < 4 ? 16 : (int64_t)1 << bits; }

// Directions of a part are [part_begin(p), part_begin(p + 1)), one after the other.
inline int64_t part_begin(const TableScanArgs& a, int64_t part) { return part * a.directions / a.parts; }

enum TableScanStatus : int64_t {
  kTableScanDone = 0,
  kTableScanBadSize = 1,
  kTableScanNoMemory = 2,
  kTableScanBadOrder = 3
};

// Channels are dealt out to threads in so many: fewer than a vector has, so that 72 channels are 36 for each of two threads.
constexpr int64_t kScanUnit = 4;

struct TableScanKernels {
  // of channels [first, last) of one image in one direction; false where memory ran out
  bool (*scan)(const TableScanArgs& args, int64_t image, int64_t direction, int64_t first, int64_t last);
  // tables of one channel of one direction and group
  void (*tables)(const ScanTablesArgs& args, int64_t group, int64_t direction, int64_t channel);
};
