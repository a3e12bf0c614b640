"""Triton kernels of ``lsq``. x is seen as (outer, C, inner) with one scale and offset per C, or C = 1."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_math import clamp, round_half_even


@triton.jit
def lsq_forward(
    x_ptr,
    scale_ptr,
    offset_ptr,
    out_ptr,
    total,
    C,
    inner,
    qmin,
    qmax,
    PER_SCALE: tl.constexpr,
    PER_OFFSET: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``(clamp(round((x + offset) / scale)) - offset / scale) * scale`` for BLOCK consecutive values.

    Divisions are IEEE and nothing can be contracted, so the bits are those of the reference.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    x = tl.load(x_ptr + i, mask=mask, other=0.0)
    channel = (i // inner) % C
    if PER_SCALE:
        scale = tl.load(scale_ptr + channel, mask=mask, other=1.0)
    else:
        scale = tl.zeros_like(x) + tl.load(scale_ptr)
    if HAS_OFFSET:
        if PER_OFFSET:
            offset = tl.load(offset_ptr + channel, mask=mask, other=0.0)
        else:
            offset = tl.zeros_like(x) + tl.load(offset_ptr)
        code = round_half_even(clamp(tl.div_rn(x + offset, scale), qmin, qmax))
        out = (code - tl.div_rn(offset, scale)) * scale
    else:
        out = round_half_even(clamp(tl.div_rn(x, scale), qmin, qmax)) * scale
    tl.store(out_ptr + i, out, mask=mask)


@triton.jit
def lsq_backward(
    grad_ptr,
    x_ptr,
    scale_ptr,
    offset_ptr,
    dx_ptr,
    sums_ptr,
    C,
    inner,
    count,
    part,
    qmin,
    qmax,
    PER_SCALE: tl.constexpr,
    PER_OFFSET: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx, and sums of dscale and doffset over ``part`` of the ``count`` values of one channel: sums (2, C, parts)."""
    channel = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * part
    scale = tl.load(scale_ptr + channel * PER_SCALE)
    offset = 0.0
    if HAS_OFFSET:
        offset = tl.load(offset_ptr + channel * PER_OFFSET)
    dscale = tl.zeros((BLOCK,), tl.float32)
    doffset = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, part, BLOCK):
        e = first + start + tl.arange(0, BLOCK)
        mask = e < count
        i = (e // inner) * C * inner + channel * inner + e % inner
        x = tl.load(x_ptr + i, mask=mask, other=0.0)
        grad = tl.load(grad_ptr + i, mask=mask, other=0.0)
        v = tl.div_rn(x + offset, tl.zeros_like(x) + scale)
        code = clamp(v, qmin, qmax)
        inside = code == v
        dx = tl.where(inside, grad, 0.0)
        tl.store(dx_ptr + i, dx, mask=mask)
        dscale += grad * (round_half_even(code) - tl.where(inside, v, v * 0.0))  # v * 0: infinities and NaN count
        doffset += dx - grad
    at = sums_ptr + channel * tl.num_programs(0) + tl.program_id(0)
    tl.store(at, tl.sum(dscale, 0))
    tl.store(at + C * tl.num_programs(0), tl.sum(doffset, 0))
