"""Triton kernels of ``dls`` for any number of tensors: statistics in parts, quantization; and the same two steps backwards.

Item: a tensor of ``rows`` x M values; a row has a grid of its own and is cut into ``parts`` of ``part`` values, at most BP.
The programs that follow merge the parts of their row themselves, all in the same way. Items lie as they are (SLOTS of them)
or side by side (SLOTS = 0: the first pointer of four). Layout of the table: ``triton.py``.
"""

import triton
import triton.language as tl

from ..triton_math import arrived_last, clamp, grid_terms, in_fours, limited, pick, place, round_half_even
from .triton_grid import grid_gradient, grid_of, merged, merged_sums


@triton.jit
def _weights(item, ints_ptr, w0, w1, w2, w3, v0, v1, v2, v3, SLOTS: tl.constexpr):
    """Pointers to an item's w and v."""
    if SLOTS == 0:
        return w0 + item * 4, v0 + item * 4
    else:
        return pick(item, w0, w1, w2, w3, SLOTS), pick(item, v0, v1, v2, v3, SLOTS)


@triton.jit
def statistics(
    x0, x1, x2, x3, parts_ptr, ints_ptr, tiles_ptr, SLOTS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """Mean, sum of squared deviations, minimum and maximum of one part -> 4 numbers of this program.

    Each block is centred on its own mean and blocks are merged pairwise (Chan, Golub, LeVeque 1983), so that a large
    mean costs no digits.
    """
    item, ints_ptr, row, part = place(ints_ptr, tiles_ptr, 5, 4, SLOTS != 1)
    M = in_fours(tl.load(ints_ptr + 2), ALIGNED)
    width = tl.load(ints_ptr + 3)
    x_ptr = pick(item, x0, x1, x2, x3, SLOTS) + in_fours(tl.load(ints_ptr) + row * M, ALIGNED)
    first = tl.multiple_of(part * width, BLOCK)
    last = in_fours(tl.minimum(first + width, M), ALIGNED)
    seen = 0.0
    mean = 0.0
    square = 0.0
    low = float("inf")
    high = float("-inf")
    for at in range(first, last, BLOCK):
        i = at + tl.arange(0, BLOCK)
        mask = i < last
        count = tl.minimum(last - at, BLOCK).to(tl.float32)
        x = limited(tl.load(x_ptr + i, mask=mask, other=0.0))
        block_mean = tl.sum(x, 0) / count
        centred = tl.where(mask, x - block_mean, 0.0)
        block_square = tl.sum(centred * centred, 0)
        low = tl.minimum(low, tl.min(tl.where(mask, x, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(mask, x, float("-inf")), 0))
        both = seen + count
        shift = block_mean - mean
        mean += shift * (count / both)
        # of the first block: 0, even if the square is infinite
        square += block_square + shift * (shift * (seen * count / both))
        seen = both
    parts_ptr += tl.program_id(0) * 4
    tl.store(parts_ptr, mean)
    tl.store(parts_ptr + 1, square)
    tl.store(parts_ptr + 2, low)
    tl.store(parts_ptr + 3, high)


@triton.jit
def quantize(
    x0,
    x1,
    x2,
    x3,
    w0,
    w1,
    w2,
    w3,
    v0,
    v1,
    v2,
    v3,
    y0,
    y1,
    y2,
    y3,
    parts_ptr,
    kept_ptr,
    ints_ptr,
    floats_ptr,
    tiles_ptr,
    SLOTS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """``(clamp(round((x + offset) / step)) - offset / step) * step`` of BLOCKS times BLOCK values, bit for bit.

    The first program of a row leaves its statistics and its grid: step, offset, lowest and highest code.
    """
    item, ints_ptr, row, part = place(ints_ptr, tiles_ptr, 7, 6, SLOTS != 1)
    floats_ptr += item * 4
    rows = tl.load(ints_ptr + 1)
    M = in_fours(tl.load(ints_ptr + 2), ALIGNED)
    w_ptr, v_ptr = _weights(item, ints_ptr, w0, w1, w2, w3, v0, v1, v2, v3, SLOTS)
    mean, std, low, high = merged(parts_ptr, ints_ptr, row, BP)
    step, offset, lowest, highest = grid_of(mean, std, low, high, w_ptr, v_ptr, floats_ptr)
    kept_ptr += tl.load(ints_ptr + 8) + row * 4
    lead = part == 0
    tl.store(kept_ptr, mean.to(tl.float32), mask=lead)
    tl.store(kept_ptr + 1, std.to(tl.float32), mask=lead)
    tl.store(kept_ptr + 2, low.to(tl.float32), mask=lead)
    tl.store(kept_ptr + 3, high.to(tl.float32), mask=lead)
    kept_ptr += rows * 4
    tl.store(kept_ptr, step, mask=lead)
    tl.store(kept_ptr + 1, offset, mask=lead)
    tl.store(kept_ptr + 2, lowest, mask=lead)
    tl.store(kept_ptr + 3, highest, mask=lead)
    start = in_fours(tl.load(ints_ptr) + row * M, ALIGNED)
    x_ptr = pick(item, x0, x1, x2, x3, SLOTS) + start
    y_ptr = pick(item, y0, y1, y2, y3, SLOTS) + start
    zero = tl.div_rn(offset, step)
    first = tl.multiple_of(part * (BLOCK * BLOCKS), BLOCK)
    for at in range(first, tl.minimum(first + BLOCK * BLOCKS, M), BLOCK):
        i = at + tl.arange(0, BLOCK)
        mask = i < M
        x = tl.load(x_ptr + i, mask=mask, other=0.0)
        code = round_half_even(clamp(tl.div_rn(x + offset, tl.zeros_like(x) + step), lowest, highest))
        tl.store(y_ptr + i, (code - zero) * step, mask=mask)


@triton.jit
def gradient_sums(
    g0,
    g1,
    g2,
    g3,
    x0,
    x1,
    x2,
    x3,
    kept_ptr,
    parts_ptr,
    counters_ptr,
    ints_ptr,
    tiles_ptr,
    SLOTS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of one part -> 4 numbers of this program: dstep, doffset, values equal to the minimum and to the maximum.

    Sets the counters of the next launch to 0.
    """
    item, ints_ptr, row, part = place(ints_ptr, tiles_ptr, 5, 4, SLOTS != 1)
    tl.store(counters_ptr + item, 0)
    rows = tl.load(ints_ptr + 1)
    M = in_fours(tl.load(ints_ptr + 2), ALIGNED)
    width = tl.load(ints_ptr + 3)
    kept_ptr += tl.load(ints_ptr + 8) + row * 4
    low = tl.load(kept_ptr + 2)
    high = tl.load(kept_ptr + 3)
    kept_ptr += rows * 4
    step = tl.load(kept_ptr)
    offset = tl.load(kept_ptr + 1)
    lowest = tl.load(kept_ptr + 2)
    highest = tl.load(kept_ptr + 3)
    start = in_fours(tl.load(ints_ptr) + row * M, ALIGNED)
    x_ptr = pick(item, x0, x1, x2, x3, SLOTS) + start
    grad_ptr = pick(item, g0, g1, g2, g3, SLOTS) + start
    dstep = tl.zeros((BLOCK,), tl.float32)
    doffset = tl.zeros((BLOCK,), tl.float32)
    lows = tl.zeros((BLOCK,), tl.float32)
    highs = tl.zeros((BLOCK,), tl.float32)
    first = tl.multiple_of(part * width, BLOCK)
    for at in range(first, tl.minimum(first + width, M), BLOCK):
        i = at + tl.arange(0, BLOCK)
        mask = i < M
        x = limited(tl.load(x_ptr + i, mask=mask, other=0.0))
        grad = tl.load(grad_ptr + i, mask=mask, other=0.0)
        _, of_step, of_offset = grid_terms(grad, x, step, offset, lowest, highest)
        dstep += of_step
        doffset += of_offset
        lows += tl.where(mask & (x == low), 1.0, 0.0)
        highs += tl.where(mask & (x == high), 1.0, 0.0)
    parts_ptr += tl.program_id(0) * 4
    tl.store(parts_ptr, tl.sum(dstep, 0))
    tl.store(parts_ptr + 1, tl.sum(doffset, 0))
    tl.store(parts_ptr + 2, tl.sum(lows, 0))
    tl.store(parts_ptr + 3, tl.sum(highs, 0))


@triton.jit
def input_gradient(
    g0,
    g1,
    g2,
    g3,
    x0,
    x1,
    x2,
    x3,
    w0,
    w1,
    w2,
    w3,
    v0,
    v1,
    v2,
    v3,
    d0,
    d1,
    d2,
    d3,
    dweights_ptr,
    kept_ptr,
    parts_ptr,
    shares_ptr,
    counters_ptr,
    ints_ptr,
    floats_ptr,
    tiles_ptr,
    SLOTS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BR: tl.constexpr,
):
    """dx of BLOCKS times BLOCK values: the upstream gradient where not clamped, plus the terms of the statistics.

    The first program of a row leaves its share of dw and dv, and the last of these of an item adds up the shares.
    """
    item, ints_ptr, row, part = place(ints_ptr, tiles_ptr, 7, 6, SLOTS != 1)
    floats_ptr += item * 4
    rows = tl.load(ints_ptr + 1)
    M = in_fours(tl.load(ints_ptr + 2), ALIGNED)
    w_ptr, v_ptr = _weights(item, ints_ptr, w0, w1, w2, w3, v0, v1, v2, v3, SLOTS)
    stats_ptr = kept_ptr + tl.load(ints_ptr + 8) + row * 4
    grid_ptr = stats_ptr + rows * 4
    shares_ptr += tl.load(ints_ptr + 9) * 8
    dstep, doffset, lows, highs = merged_sums(parts_ptr, ints_ptr, row, BP)
    lead = part == 0
    term, slope, at_low, at_high = grid_gradient(
        dstep, doffset, lows, highs, stats_ptr, grid_ptr, w_ptr, v_ptr, floats_ptr, M, shares_ptr + row * 8, lead
    )
    low = tl.load(stats_ptr + 2)
    high = tl.load(stats_ptr + 3)
    step = tl.load(grid_ptr)
    offset = tl.load(grid_ptr + 1)
    lowest = tl.load(grid_ptr + 2)
    highest = tl.load(grid_ptr + 3)
    start = in_fours(tl.load(ints_ptr) + row * M, ALIGNED)
    x_ptr = pick(item, x0, x1, x2, x3, SLOTS) + start
    grad_ptr = pick(item, g0, g1, g2, g3, SLOTS) + start
    dx_ptr = pick(item, d0, d1, d2, d3, SLOTS) + start
    first = tl.multiple_of(part * (BLOCK * BLOCKS), BLOCK)
    for at in range(first, tl.minimum(first + BLOCK * BLOCKS, M), BLOCK):
        i = at + tl.arange(0, BLOCK)
        mask = i < M
        x = limited(tl.load(x_ptr + i, mask=mask, other=0.0))
        grad = tl.load(grad_ptr + i, mask=mask, other=0.0)
        dx, _, _ = grid_terms(grad, x, step, offset, lowest, highest)
        dx += term + slope * x
        dx += tl.where(x == low, at_low, 0.0)
        dx += tl.where(x == high, at_high, 0.0)
        tl.store(dx_ptr + i, dx, mask=mask)
    if lead:  # noqa: SIM102 (an `and` would count every program)
        if arrived_last(counters_ptr + item, rows):
            k = tl.arange(0, 8)
            total = tl.zeros((8,), tl.float64)
            for r0 in range(0, rows, BR):
                r = r0 + tl.arange(0, BR)
                share_ptr = shares_ptr + r[:, None] * 8 + k[None, :]
                share = tl.load(share_ptr, mask=(r < rows)[:, None], other=0.0, cache_modifier=".cg")
                total += tl.sum(share.to(tl.float64), 0)
            tl.store(dweights_ptr + item * 8 + k, total.to(tl.float32))
