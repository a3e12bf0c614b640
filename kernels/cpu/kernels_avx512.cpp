// Kernels for x86-64 with AVX-512; compiled with -mavx512f -mavx512dq -mavx512vl -mfma.
#define QM_WIDTH 16
#define QM_ISA avx512
#include "table.h"

// the backward scan lives on its scratch memory, and that of narrower vectors stays nearer: measured on Zen 4
extern const Kernels kernels_avx512 = make_table("avx512", scan_backward_avx512vl);
