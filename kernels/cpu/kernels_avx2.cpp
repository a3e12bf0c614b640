// Kernels for x86-64 with AVX2 and FMA; compiled with -mavx2 -mfma.
#define QM_WIDTH 8
#define QM_ISA avx2
#include "scan_backward.h"
#include "table.h"

extern const Kernels kernels_avx2 = make_table("avx2", QM_ISA::backward);
