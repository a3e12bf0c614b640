// Integer operators for AArch64 with the dot products of ARMv8.2; compiled with -march=armv8.2-a+dotprod.
#define QM_WIDTH 4
#define QM_ISA integer_dotprod_
#include "integer_table.h"

extern const IntegerKernels integer_dotprod = make_integer_table("dotprod");
