// Integer operators for x86-64 with AVX2 and AVX-VNNI; compiled with -mavx2 -mfma -mavxvnni.
#define QM_WIDTH 8
#define QM_ISA integer_avxvnni_
#define QM_TILE_AVXVNNI
#include "integer_table.h"

extern const IntegerKernels integer_avxvnni = make_integer_table("avxvnni");
