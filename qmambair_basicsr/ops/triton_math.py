"""Device functions that the kernels of several operators share. Importing this module needs Triton."""

from __future__ import annotations

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
