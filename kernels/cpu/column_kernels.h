// Sums over the rows of a map, for the mean of each channel.
#pragma once

#include "glue.h"
#include "simd.h"

namespace QM_ISA {
namespace {

// In double: the order of the rows shows in no bit of the mean.
void column_sums(const float* x, int64_t stride, int64_t rows, int64_t columns, double* __restrict sums) {
  for (int64_t c = 0; c < columns; c++) sums[c] = 0;
  for (int64_t r = 0; r < rows; r++, x += stride)
    for (int64_t c = 0; c < columns; c++) sums[c] += x[c];
}

}  // namespace
}  // namespace QM_ISA
