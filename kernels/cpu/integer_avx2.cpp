// Integer operators for x86-64 with AVX2; compiled with -mavx2 -mfma.
#define QM_WIDTH 8
#define QM_ISA integer_avx2_
#include "integer_table.h"

extern const IntegerKernels integer_avx2 = make_integer_table("avx2");
