// Kernels for any CPU the compiler targets: SSE2 on x86-64, NEON on AArch64.
#define QM_WIDTH 4
#define QM_ISA portable
#include "scan_backward.h"
#include "table.h"

extern const Kernels kernels_portable = make_table("portable", QM_ISA::backward);
