// The integer operators of one instruction set as a table, for integer_*.cpp.
#pragma once

#include "integer_conv.h"
#include "integer_product.h"

namespace {

void quantize_values(const float* x, uint8_t* codes, int64_t n, const float* grid, int64_t zero, bool plain) {
  QM_ISA::quantize_row(x, n, QM_ISA::CodeGrid(grid, zero, plain), codes);
}

constexpr IntegerKernels make_integer_table(const char* name) {
  return {name, QM_ISA::linear, QM_ISA::convolve, QM_ISA::multiply, quantize_values};
}

}  // namespace
