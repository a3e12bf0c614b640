// The functions of one instruction set as a table, for kernels_*.cpp; the backward scan may be that of another set.
#pragma once

#include "attention_forward.h"
#include "column_kernels.h"
#include "glue_kernels.h"
#include "kernels.h"
#include "quant_kernels.h"
#include "route_kernels.h"
#include "scan_forward.h"
#include "table_scan_kernels.h"
#include "uniform_kernels.h"

namespace {

constexpr Kernels make_table(const char* name, ScanBackward* backward) {
  return {name,
          {QM_WIDTH, QM_ISA::forward, backward},
          {QM_ISA::table_scan, QM_ISA::scan_tables},
          {QM_ISA::moments, QM_ISA::quantize, QM_ISA::grid_sums, QM_ISA::grid_input, QM_ISA::rfa_forward,
           QM_ISA::rfa_backward},
          {QM_ISA::attention_forward, QM_ISA::attention_backward},
          {QM_ISA::glue_rows, QM_ISA::delta_rows, QM_ISA::route_rows, QM_ISA::uniform,
           QM_ISA::column_sums}};
}

}  // namespace
