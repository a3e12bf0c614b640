// Integer operators for any CPU the compiler targets.
#define QM_WIDTH 4
#define QM_ISA integer_portable_
#include "integer_table.h"

extern const IntegerKernels integer_portable = make_integer_table("portable");
