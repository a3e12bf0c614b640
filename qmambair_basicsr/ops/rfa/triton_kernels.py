"""Triton kernels of ``rfa`` for any number of tensors: every launch is cut into tiles, a table says which tensor each is of.

Thresholds are put in order on the way, as ``item.order`` does, and compared one after the other: a value has the level of
the last border that it exceeds. Launched without contraction to fused multiply-adds, so ordered thresholds have the bits of
the reference. Layout of the table: ``triton.py``.
"""

import triton
import triton.language as tl

from ..triton_math import arrived_last, clamp, step_gradient, step_in_use


@triton.jit
def _ordered(thresholds_ptr, i, min_gap, best, source, value):
    """Threshold i in use, and the state after it: the largest ``T_j - j min_gap`` so far, its j and T_j."""
    t = tl.load(thresholds_ptr + i)
    at = i * 1.0
    key = t - min_gap * at
    newer = (min_gap < 0) | (key >= best)  # without a gap every threshold is its own
    best = tl.where(newer, key, best)
    source = tl.where(newer, at, source)
    value = tl.where(newer, t, value)
    return value + tl.where(newer, 0.0, min_gap * (at - source)), best, source, value


@triton.jit
def rfa_forward(
    w_ptr, scale_ptr, offset_ptr, thresholds_ptr, out_ptr, ints_ptr, floats_ptr, tiles_ptr, BLOCK: tl.constexpr
):
    """``(code - offset / step) * step``, the code being qmin + the last midpoint exceeded; bit for bit."""
    tile = tl.program_id(0)
    item = tl.load(tiles_ptr + tile)
    ints_ptr += item * 6
    floats_ptr += item * 4
    total = tl.load(ints_ptr + 1)
    i = (tile - tl.load(ints_ptr + 2)) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    i += tl.load(ints_ptr)
    count = tl.load(ints_ptr + 3).to(tl.int32)
    thresholds_ptr += tl.load(ints_ptr + 4)
    qmin = tl.load(floats_ptr)
    min_gap = tl.load(floats_ptr + 3)
    step = step_in_use(tl.load(scale_ptr + item), tl.load(floats_ptr + 1))
    offset = tl.load(offset_ptr + item)
    w = tl.load(w_ptr + i, mask=mask, other=0.0)
    v = clamp(tl.div_rn(w + offset, tl.zeros_like(w) + step), qmin, qmin + (count - 1).to(tl.float32))
    level = tl.zeros_like(w)
    before, best, source, value = _ordered(thresholds_ptr, count * 0, min_gap, float("-inf"), 0.0, 0.0)
    for n in range(1, count):
        here, best, source, value = _ordered(thresholds_ptr, n, min_gap, best, source, value)
        level = tl.where(v > (before + here) * 0.5, n * 1.0, level)
        before = here
    code = tl.where(v == v, level + qmin, v)
    tl.store(out_ptr + i, (code - tl.div_rn(offset, step)) * step, mask=mask)


@triton.jit
def rfa_backward(
    grad_ptr,
    w_ptr,
    scale_ptr,
    offset_ptr,
    thresholds_ptr,
    dw_ptr,
    dscale_ptr,
    doffset_ptr,
    dthresholds_ptr,
    ordered_ptr,
    sources_ptr,
    sums_ptr,
    counter_ptr,
    ints_ptr,
    floats_ptr,
    tiles_ptr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dw of a tile and its sums (2 + 2 bins): doffset, dscale, of each bin the upstream gradient and the share of it that
    moves the bin's upper threshold. The tensor's last program adds them up and writes the gradients of its parameters.
    """
    tile = tl.program_id(0)
    item = tl.load(tiles_ptr + tile)
    ints_ptr += item * 6
    floats_ptr += item * 4
    total = tl.load(ints_ptr + 1)
    part = tile - tl.load(ints_ptr + 2)
    i = part * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    i += tl.load(ints_ptr)
    count = tl.load(ints_ptr + 3).to(tl.int32)
    parameters = tl.load(ints_ptr + 4)
    thresholds_ptr += parameters
    ordered_ptr += parameters
    sources_ptr += parameters
    qmin = tl.load(floats_ptr)
    floor = tl.load(floats_ptr + 1)
    min_gap = tl.load(floats_ptr + 3)
    scale = tl.load(scale_ptr + item)
    step = step_in_use(scale, floor)
    offset = tl.load(offset_ptr + item)
    w = tl.load(w_ptr + i, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + i, mask=mask, other=0.0)
    v = tl.div_rn(w + offset, tl.zeros_like(w) + step)
    clamped = clamp(v, qmin, qmin + (count - 1) * 1.0)
    inside = clamped == v

    # bin b lies between thresholds b - 1 and b; unless a later threshold is exceeded, its slope is known when b is reached
    before, best, source, value = _ordered(thresholds_ptr, count * 0, min_gap, float("-inf"), 0.0, 0.0)
    tl.store(ordered_ptr, before, mask=part == 0)
    tl.store(sources_ptr, source, mask=part == 0)
    level = tl.zeros_like(w)
    bins = tl.where(clamped > before, 1.0, 0.0)
    lower = tl.zeros_like(w) + before
    slope = tl.zeros_like(w) + 0.1
    for n in range(1, count):
        here, best, source, value = _ordered(thresholds_ptr, n, min_gap, best, source, value)
        tl.store(ordered_ptr + n, here, mask=part == 0)
        tl.store(sources_ptr + n, source, mask=part == 0)
        level = tl.where(clamped > (before + here) * 0.5, n * 1.0, level)
        slope = tl.where(bins == n, tl.div_rn(1.0 + before * 0.0, here - before), slope)
        over = clamped > here
        bins = tl.where(over, n + 1.0, bins)
        lower = tl.where(over, here, lower)
        slope = tl.where(over, 0.1, slope)
        before = here
    code = tl.where(v == v, level + qmin, v)
    dw = tl.where(inside, grad * slope, 0.0)
    tl.store(dw_ptr + i, dw, mask=mask)

    width = 4 + 2 * count  # of the sums of a program
    sums_ptr += tl.load(ints_ptr + 5)
    own_ptr = sums_ptr + part * width
    tl.store(own_ptr, tl.sum(dw - grad, 0))
    tl.store(own_ptr + 1, tl.sum(tl.where(mask, grad * code - dw * clamped, 0.0), 0))
    moved = grad * ((clamped - lower) * slope)
    for b in range(count + 1):
        tl.store(own_ptr + 2 + b, tl.sum(tl.where(bins == b, grad, 0.0), 0))
        tl.store(own_ptr + 3 + count + b, tl.sum(tl.where(bins == b, moved, 0.0), 0))

    programs = (total + (BLOCK - 1)) // BLOCK
    if arrived_last(counter_ptr + item, programs):
        k = tl.arange(0, LEVELS)
        known = k < count
        upper = known & (k < count - 1)
        offset_sum = tl.zeros((1,), tl.float64)
        scale_sum = tl.zeros((1,), tl.float64)
        below = tl.zeros(
            (LEVELS,), tl.float64
        )  # of the bin below each threshold: gradient, and the share that moves it
        moves = tl.zeros((LEVELS,), tl.float64)
        above = tl.zeros((LEVELS,), tl.float64)  # of the bin above it
        leaves = tl.zeros((LEVELS,), tl.float64)
        for p in range(0, programs):
            left_ptr = sums_ptr + p * width
            offset_sum += tl.load(left_ptr, cache_modifier=".cg").to(tl.float64)
            scale_sum += tl.load(left_ptr + 1, cache_modifier=".cg").to(tl.float64)
            of_bins = left_ptr + 2 + k
            below += tl.load(of_bins, mask=known, other=0.0, cache_modifier=".cg").to(tl.float64)
            above += tl.load(of_bins + 1, mask=known, other=0.0, cache_modifier=".cg").to(tl.float64)
            of_bins += count + 1
            moves += tl.load(of_bins, mask=known, other=0.0, cache_modifier=".cg").to(tl.float64)
            leaves += tl.load(of_bins + 1, mask=known, other=0.0, cache_modifier=".cg").to(tl.float64)
        tl.store(doffset_ptr + item, tl.sum(offset_sum, 0).to(tl.float32))
        dscale = tl.sum(scale_sum, 0).to(tl.float32)
        tl.store(dscale_ptr + item, step_gradient(dscale, scale, floor, tl.load(floats_ptr + 2)))
        threshold = tl.load(ordered_ptr + k, mask=known, other=0.0, cache_modifier=".cg")
        previous = tl.load(ordered_ptr + k - 1, mask=known & (k > 0), other=0.0, cache_modifier=".cg")
        following = tl.load(ordered_ptr + k + 1, mask=upper, other=0.0, cache_modifier=".cg")
        d = tl.where(k == 0, -0.1 * below.to(tl.float32), 0.0)
        d = tl.where(known & (k == count - 1), -0.1 * above.to(tl.float32), d)
        share = tl.div_rn(above.to(tl.float32) - leaves.to(tl.float32), tl.where(upper, following - threshold, 1.0))
        d -= tl.where(upper, share, 0.0)
        lower_gap = tl.where(known & (k > 0), threshold - previous, 1.0)
        d -= tl.where(k > 0, tl.div_rn(moves.to(tl.float32), lower_gap), 0.0)
        d *= step
        origin = tl.load(sources_ptr + k, mask=known, other=-1.0, cache_modifier=".cg")
        for j in range(0, count):  # a threshold that a lower one pushed up leaves its gradient to that one
            tl.store(dthresholds_ptr + parameters + j, tl.sum(tl.where(origin == j, d, 0.0), 0))
