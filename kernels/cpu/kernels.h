// The tables of kernels that api.cpp chooses from.
#pragma once

#include "scan.h"

struct Kernels {
  const char* name;
  ScanKernels scan;
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
