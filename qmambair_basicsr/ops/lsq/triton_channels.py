"""Triton kernels of ``lsq`` for parameters that vary along a dimension whose neighbours lie side by side in memory.

x is seen as (outer, C, inner) with a small inner, and one step or offset for each C.
"""

import triton
import triton.language as tl

from ..triton_math import clamp, grid_terms, limited, round_half_even


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
    BC: tl.constexpr,
    BE: tl.constexpr,
):
    """dx of BC channels and ``part`` of the ``count`` values of each, BE at a time, and the sums of dscale and doffset
    over them -> sums (2, C, parts)."""
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    known = channel < C
    first = tl.program_id(0).to(tl.int64) * part
    scale = tl.load(scale_ptr + channel * PER_SCALE, mask=known, other=1.0)[:, None]
    offset = tl.zeros((BC, 1), tl.float32)
    if HAS_OFFSET:
        offset = tl.load(offset_ptr + channel * PER_OFFSET, mask=known, other=0.0)[:, None]
    dscale = tl.zeros((BC, BE), tl.float32)
    doffset = tl.zeros((BC, BE), tl.float32)
    for start in range(0, part, BE):
        e = first + start + tl.arange(0, BE)
        mask = known[:, None] & (e < count)[None, :]
        i = ((e // inner) * C * inner + e % inner)[None, :] + channel[:, None] * inner
        x = limited(tl.load(x_ptr + i, mask=mask, other=0.0))
        grad = tl.load(grad_ptr + i, mask=mask, other=0.0)
        dx, of_scale, of_offset = grid_terms(grad, x, scale, offset, qmin, qmax)
        tl.store(dx_ptr + i, dx, mask=mask)
        dscale += of_scale
        doffset += of_offset
    at = sums_ptr + channel * tl.num_programs(0) + tl.program_id(0)
    tl.store(at, tl.sum(dscale, 1), mask=known)
    tl.store(at + C * tl.num_programs(0), tl.sum(doffset, 1), mask=known)
