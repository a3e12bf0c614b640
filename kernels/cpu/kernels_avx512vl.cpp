// The scan for x86-64 with AVX-512 on vectors of 256 bits: 32 registers and scalef; compiled with -mavx512f -mavx512dq
// -mavx512vl -mfma.
#define QM_WIDTH 8
#define QM_ISA avx512vl
#include "kernels.h"
#include "scan_kernels.h"

extern const ScanKernels scan_avx512vl = {QM_WIDTH, avx512vl::forward, avx512vl::backward};
