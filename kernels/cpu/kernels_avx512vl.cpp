// The scan's backward for x86-64 with AVX-512 on vectors of 256 bits: 32 registers and scalef; compiled with -mavx512f
// -mavx512dq -mavx512vl -mfma.
#define QM_WIDTH 8
#define QM_ISA avx512vl
#include "kernels.h"
#include "scan_backward.h"

bool scan_backward_avx512vl(const ScanArgs& args, int64_t image, int64_t direction, int64_t group) {
  return avx512vl::backward(args, image, direction, group);
}
