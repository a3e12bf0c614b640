"""Triton kernels of ``lsq`` for values that lie in rows with one step and one offset each, of any number of tensors.

Item: a tensor of ``rows`` x ``cols`` values; row r has the parameters r % channels, and is cut into ``parts`` of ``part``
values. Programs run over the items, their rows and the parts of a row. Layout of the table: ``triton.py``.
"""

import triton
import triton.language as tl

from ..triton_math import (
    arrived_last,
    clamp,
    grid_terms,
    in_fours,
    limited,
    place,
    round_half_even,
    step_gradient,
    step_in_use,
)


@triton.jit
def lsq_forward(
    x_ptr,
    scale_ptr,
    offset_ptr,
    out_ptr,
    counter_ptr,
    ints_ptr,
    floats_ptr,
    tiles_ptr,
    MANY: tl.constexpr,
    PER_SCALE: tl.constexpr,
    PER_OFFSET: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``(clamp(round((x + offset) / step)) - offset / step) * step``; sets the counter of the backward pass to 0.

    Divisions are IEEE and nothing can be contracted, so the bits are those of the reference.
    """
    item, ints_ptr, row, part = place(ints_ptr, tiles_ptr, 5, 4, MANY)
    floats_ptr += item * 4
    if not MANY:
        tl.store(counter_ptr, 0)
    cols = in_fours(tl.load(ints_ptr + 2), ALIGNED)
    width = tl.load(ints_ptr + 3)
    channel = row % tl.load(ints_ptr + 6).to(tl.int32)
    scale_ptr += tl.load(ints_ptr + 7) + channel * PER_SCALE
    step = step_in_use(tl.load(scale_ptr), tl.load(floats_ptr + 2))
    qmin = tl.load(floats_ptr)
    qmax = tl.load(floats_ptr + 1)
    start = in_fours(tl.load(ints_ptr) + row * cols, ALIGNED)
    x_ptr += start
    out_ptr += start
    if HAS_OFFSET:
        offset = tl.load(offset_ptr + tl.load(ints_ptr + 8) + channel * PER_OFFSET)
        zero = tl.div_rn(offset, step)
    first = tl.multiple_of(part * width, BLOCK)
    for at in range(first, tl.minimum(first + width, cols), BLOCK):
        i = at + tl.arange(0, BLOCK)
        mask = i < cols
        x = tl.load(x_ptr + i, mask=mask, other=0.0)
        if HAS_OFFSET:
            code = round_half_even(clamp(tl.div_rn(x + offset, tl.zeros_like(x) + step), qmin, qmax))
            out = (code - zero) * step
        else:
            out = round_half_even(clamp(tl.div_rn(x, tl.zeros_like(x) + step), qmin, qmax)) * step
        tl.store(out_ptr + i, out, mask=mask)


@triton.jit
def lsq_backward(
    grad_ptr,
    x_ptr,
    scale_ptr,
    offset_ptr,
    dx_ptr,
    dscale_ptr,
    doffset_ptr,
    sums_ptr,
    counter_ptr,
    ints_ptr,
    floats_ptr,
    tiles_ptr,
    MANY: tl.constexpr,
    PER_SCALE: tl.constexpr,
    PER_OFFSET: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    FC: tl.constexpr,
    FP: tl.constexpr,
):
    """dx of one part of a row, and its sums of dscale and doffset -> sums (2, rows, parts) of the item.

    The item's last program adds these up in float64, FC channels and FP sums at a time, and writes the gradients.
    """
    item, ints_ptr, row, part = place(ints_ptr, tiles_ptr, 5, 4, MANY)
    floats_ptr += item * 4
    rows = tl.load(ints_ptr + 1).to(tl.int32)
    cols = in_fours(tl.load(ints_ptr + 2), ALIGNED)
    width = tl.load(ints_ptr + 3)
    parts = tl.load(ints_ptr + 4).to(tl.int32)
    channels = tl.load(ints_ptr + 6).to(tl.int32)
    scale_ptr += tl.load(ints_ptr + 7)
    offset_at = tl.load(ints_ptr + 8)
    floor = tl.load(floats_ptr + 2)
    qmin = tl.load(floats_ptr)
    qmax = tl.load(floats_ptr + 1)
    step = step_in_use(tl.load(scale_ptr + (row % channels) * PER_SCALE), floor)
    start = in_fours(tl.load(ints_ptr) + row * cols, ALIGNED)
    x_ptr += start
    grad_ptr += start
    dx_ptr += start
    dscale = tl.zeros((BLOCK,), tl.float32)
    doffset = tl.zeros((BLOCK,), tl.float32)
    offset = 0.0
    if HAS_OFFSET:
        offset = tl.load(offset_ptr + offset_at + (row % channels) * PER_OFFSET)
    first = tl.multiple_of(part * width, BLOCK)
    for at in range(first, tl.minimum(first + width, cols), BLOCK):
        i = at + tl.arange(0, BLOCK)
        mask = i < cols
        x = limited(tl.load(x_ptr + i, mask=mask, other=0.0))
        grad = tl.load(grad_ptr + i, mask=mask, other=0.0)
        dx, of_scale, of_offset = grid_terms(grad, x, step, offset, qmin, qmax)
        tl.store(dx_ptr + i, dx, mask=mask)
        dscale += of_scale
        doffset += of_offset
    sums_ptr += tl.load(ints_ptr + 9)
    tl.store(sums_ptr + row * parts + part, tl.sum(dscale, 0))
    tl.store(sums_ptr + (rows + row) * parts + part, tl.sum(doffset, 0))
    if arrived_last(counter_ptr + item, rows * parts):
        dscale_ptr += tl.load(ints_ptr + 7)
        doffset_ptr += offset_at
        grad_scale = tl.load(floats_ptr + 3)
        if PER_SCALE or PER_OFFSET:
            scale_sum = tl.zeros((FC,), tl.float64)
            offset_sum = tl.zeros((FC,), tl.float64)
            count = rows // channels * parts
            for c0 in range(0, channels, FC):
                c = c0 + tl.arange(0, FC)
                if PER_SCALE:
                    scale_sum = tl.zeros((FC,), tl.float64)
                if PER_OFFSET:
                    offset_sum = tl.zeros((FC,), tl.float64)
                for j0 in range(0, count, FP):
                    j = j0 + tl.arange(0, FP)
                    of_row = ((j // parts) * channels)[None, :] + c[:, None]
                    left = sums_ptr + of_row * parts + (j % parts)[None, :]
                    known = (c < channels)[:, None] & (j < count)[None, :]
                    scale_sum += tl.sum(tl.load(left, mask=known, other=0.0, cache_modifier=".cg").to(tl.float64), 1)
                    left += rows * parts
                    offset_sum += tl.sum(tl.load(left, mask=known, other=0.0, cache_modifier=".cg").to(tl.float64), 1)
                if PER_SCALE:
                    scale = tl.load(scale_ptr + c, mask=c < channels, other=1.0)
                    ds = step_gradient(scale_sum.to(tl.float32), scale, floor, grad_scale)
                    tl.store(dscale_ptr + c, ds, mask=c < channels)
                if PER_OFFSET:
                    tl.store(doffset_ptr + c, offset_sum.to(tl.float32), mask=c < channels)
            if not PER_SCALE:
                ds = tl.sum(scale_sum, 0).to(tl.float32)
                tl.store(dscale_ptr, step_gradient(ds, tl.load(scale_ptr), floor, grad_scale))
            if HAS_OFFSET and not PER_OFFSET:
                tl.store(doffset_ptr, tl.sum(offset_sum, 0).to(tl.float32))
        else:
            j = tl.arange(0, FP)  # one row, of no more parts than FP
            left = sums_ptr + j
            total = tl.sum(tl.load(left, mask=j < parts, other=0.0, cache_modifier=".cg").to(tl.float64), 0)
            tl.store(dscale_ptr, step_gradient(total.to(tl.float32), tl.load(scale_ptr), floor, grad_scale))
            if HAS_OFFSET:
                total = tl.sum(tl.load(left + parts, mask=j < parts, other=0.0, cache_modifier=".cg").to(tl.float64), 0)
                tl.store(doffset_ptr, total.to(tl.float32))
