// The functions of one instruction set as a table; included by the kernels_*.cpp.
#pragma once

#include "attention_kernels.h"
#include "kernels.h"
#include "quant_kernels.h"
#include "scan_kernels.h"

namespace {

constexpr Kernels make_table(const char* name) {
  return {name,
          {QM_WIDTH, QM_ISA::forward, QM_ISA::backward},
          {QM_ISA::moments, QM_ISA::quantize, QM_ISA::grid_sums, QM_ISA::grid_input, QM_ISA::rfa_forward,
           QM_ISA::rfa_backward},
          {QM_ISA::attention_forward, QM_ISA::attention_backward}};
}

}  // namespace
