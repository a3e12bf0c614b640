// Kernels for x86-64 with AVX-512; compiled with -mavx512f -mavx512dq -mavx512vl -mfma.
#define QM_WIDTH 16
#define QM_ISA avx512
#include "table.h"

extern const Kernels kernels_avx512 = make_table("avx512");
