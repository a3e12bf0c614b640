// The functions of one instruction set as a table; included by the kernels_*.cpp.
#pragma once

#include "kernels.h"
#include "scan_kernels.h"

namespace {

constexpr Kernels make_table(const char* name) {
  return {name, {QM_WIDTH, QM_ISA::forward, QM_ISA::backward}};
}

}  // namespace
