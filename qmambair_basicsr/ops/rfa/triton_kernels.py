"""Triton kernels of ``rfa``: thresholds are searched by bisection, so the cost grows with the bit-width, not with 2^n."""

import triton
import triton.language as tl

from ..triton_math import clamp


@triton.jit
def _exceeded(v, borders_ptr, LEVELS: tl.constexpr):
    """How many of the 2^LEVELS - 1 sorted borders lie below v; 0 for NaN."""
    found = tl.zeros_like(v).to(tl.int32)
    for level in tl.static_range(LEVELS):
        width = 1 << (LEVELS - 1 - level)
        found = tl.where(v > tl.load(borders_ptr + found + (width - 1)), found + width, found)
    return found


@triton.jit
def rfa_forward(
    w_ptr, scale_ptr, offset_ptr, midpoints_ptr, out_ptr, total, qmin, qmax, LEVELS: tl.constexpr, BLOCK: tl.constexpr
):
    """``(code - offset / scale) * scale``, the code being qmin + the number of midpoints exceeded; bit for bit."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    scale = tl.load(scale_ptr)
    offset = tl.load(offset_ptr)
    w = tl.load(w_ptr + i, mask=mask, other=0.0)
    v = clamp(tl.div_rn(w + offset, tl.zeros_like(w) + scale), qmin, qmax)
    code = _exceeded(v, midpoints_ptr, LEVELS).to(tl.float32) + qmin
    code = tl.where(v == v, code, v)
    tl.store(out_ptr + i, (code - tl.div_rn(offset, scale)) * scale, mask=mask)


@triton.jit
def rfa_backward(
    grad_ptr,
    w_ptr,
    scale_ptr,
    offset_ptr,
    midpoints_ptr,
    thresholds_ptr,
    slopes_ptr,
    starts_ptr,
    dw_ptr,
    sums_ptr,
    total,
    bins,
    qmin,
    qmax,
    LEVELS: tl.constexpr,
    BORDER_LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dw and this block's sums -> sums (programs, 2 + 2 bins): doffset, dscale, per bin the upstream gradient and the
    share of it that moves the bin's upper threshold."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    scale = tl.load(scale_ptr)
    offset = tl.load(offset_ptr)
    w = tl.load(w_ptr + i, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + i, mask=mask, other=0.0)
    v = tl.div_rn(w + offset, tl.zeros_like(w) + scale)
    clamped = clamp(v, qmin, qmax)
    inside = clamped == v
    code = _exceeded(clamped, midpoints_ptr, LEVELS).to(tl.float32) + qmin
    code = tl.where(v == v, code, v)
    where = _exceeded(clamped, thresholds_ptr, BORDER_LEVELS)
    slope = tl.load(slopes_ptr + where)
    dw = tl.where(inside, grad * slope, 0.0)
    tl.store(dw_ptr + i, dw, mask=mask)
    sums_ptr += tl.program_id(0).to(tl.int64) * (2 + 2 * bins)
    tl.store(sums_ptr, tl.sum(dw - grad, 0))
    tl.store(sums_ptr + 1, tl.sum(tl.where(mask, grad * code - dw * clamped, 0.0), 0))
    moved = grad * ((clamped - tl.load(starts_ptr + where)) * slope)
    for b in range(bins):
        here = where == b
        tl.store(sums_ptr + 2 + b, tl.sum(tl.where(here, grad, 0.0), 0))
        tl.store(sums_ptr + 2 + bins + b, tl.sum(tl.where(here, moved, 0.0), 0))
