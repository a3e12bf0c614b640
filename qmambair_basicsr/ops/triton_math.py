"""Device functions that the kernels of several operators share. Importing this module needs Triton.

Kernel modules do without postponed annotations: the interpreter of Triton 3.0 reads ``tl.constexpr`` from them.
"""

import triton
import triton.language as tl


@triton.jit
def round_half_even(v):
    """Nearest integer, ties to even, for |v| <= 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. NaN stays NaN."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def clamp(v, low, high):
    """v limited to [low, high]; NaN stays NaN (``tl.clamp`` and min/max drop it)."""
    v = tl.where(v < low, low, v)
    return tl.where(v > high, high, v)


@triton.jit
def limited(v):
    """v within +-2^80, the limit of float32 in ``limits``; NaN stays NaN."""
    return clamp(v, -1208925819614629174706176.0, 1208925819614629174706176.0)


@triton.jit
def count_up(out_ptr, steps_ptr):
    """Loops steps[0] times and adds the steps that a mask lets through: shows whether Triton's interpreter runs here."""
    i = tl.arange(0, 4)
    total = tl.zeros((4,), tl.float32)
    for _ in range(tl.load(steps_ptr).to(tl.int32)):
        total += tl.load(steps_ptr + i, mask=i < 2, other=0.0)
    tl.store(out_ptr + i, total, mask=i < 3)
