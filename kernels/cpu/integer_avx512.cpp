// Integer operators for x86-64 with AVX-512 and its VNNI; compiled with -mavx512f -mavx512dq -mavx512vl -mavx512bw
// -mavx512vnni -mfma.
#define QM_WIDTH 16
#define QM_ISA integer_avx512_
#define QM_TILE_AVX512
#include "integer_table.h"

extern const IntegerKernels integer_avx512 = make_integer_table("avx512");
