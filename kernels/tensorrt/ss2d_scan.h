// Launches the directional selective scan on a GPU.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "ss2d_scan_body.h"

namespace qmambair {

// Bytes of scratch memory a scan needs; half says that x, delta, B, C and y are FP16.
size_t scan_workspace(ScanShape const& shape, bool half);

// Both return the status of the launches. `y` is (batch, pixels, channels).
cudaError_t scan_float(ScanShape const& shape, ScanInputs<float> const& in, float* y, void* workspace, cudaStream_t stream);
cudaError_t scan_half(ScanShape const& shape, ScanInputs<__half> const& in, __half* y, void* workspace, cudaStream_t stream);

}  // namespace qmambair
