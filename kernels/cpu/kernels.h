// The tables of kernels that api.cpp chooses from.
#pragma once

#include "attention.h"
#include "glue.h"
#include "quant.h"
#include "scan.h"
#include "table_scan.h"

struct Kernels {
  const char* name;
  ScanKernels scan;
  TableScanKernels table_scan;
  QuantKernels quant;
  AttentionKernels attention;
  GlueKernels glue;
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
ScanBackward scan_backward_avx512vl;
