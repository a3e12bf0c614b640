"""Device functions of ``dls`` in Triton for one row: merged statistics, the grid that follows, and its gradient; in float64.

``reference.py`` has the formulas, ``triton.py`` the layout of the table.
"""

import triton
import triton.language as tl

from ..triton_math import clamp


@triton.jit
def merged(parts_ptr, ints_ptr, row, BP: tl.constexpr):
    """Mean, unbiased standard deviation, minimum and maximum of a row from those of its parts."""
    M = tl.load(ints_ptr + 2)
    width = tl.load(ints_ptr + 3)
    parts = tl.load(ints_ptr + 4)
    i = tl.arange(0, BP)
    mask = i < parts
    at = parts_ptr + (tl.load(ints_ptr + 5) + row * parts + i) * 4
    count = tl.where(mask, tl.minimum(M - i.to(tl.int64) * width, width), 0).to(tl.float64)
    means = tl.load(at, mask=mask, other=0.0).to(tl.float64)
    squares = tl.load(at + 1, mask=mask, other=0.0).to(tl.float64)
    mean = tl.sum(means * count, 0) / M
    apart = means - mean
    variance = tl.sum(squares + tl.where(mask, apart * apart, 0.0) * count, 0) / tl.maximum(M - 1, 1)
    low = tl.min(tl.load(at + 2, mask=mask, other=float("inf")), 0).to(tl.float64)
    high = tl.max(tl.load(at + 3, mask=mask, other=float("-inf")), 0).to(tl.float64)
    spread = high - low
    std = tl.sqrt(variance)
    std = tl.where(std > spread, spread, std)  # in force only when squares overflow
    low = tl.where(mean == mean, low, mean)  # min and max pass over NaN, the mean does not
    high = tl.where(mean == mean, high, mean)
    return mean, std, low, high


@triton.jit
def merged_sums(parts_ptr, ints_ptr, row, BP: tl.constexpr):
    """The four sums of a row from those of its parts."""
    parts = tl.load(ints_ptr + 4)
    i = tl.arange(0, BP)
    mask = i < parts
    at = parts_ptr + (tl.load(ints_ptr + 5) + row * parts + i) * 4
    dstep = tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float64), 0)
    doffset = tl.sum(tl.load(at + 1, mask=mask, other=0.0).to(tl.float64), 0)
    lows = tl.sum(tl.load(at + 2, mask=mask, other=0.0).to(tl.float64), 0)
    highs = tl.sum(tl.load(at + 3, mask=mask, other=0.0).to(tl.float64), 0)
    return dstep, doffset, lows, highs


@triton.jit
def _step_and_cap(mean, std, low, high, offset, w_ptr, cap_share):
    """|w . shifted statistics| and the cap, both floored, and the dot product before the absolute value."""
    # RELATIVE_FLOOR and ABSOLUTE_FLOOR of the reference
    least = tl.maximum(tl.abs(low), tl.abs(high)) * 9.5367431640625e-07 + 1e-12
    raw = tl.load(w_ptr).to(tl.float64) * tl.abs(mean + offset) + tl.load(w_ptr + 1).to(tl.float64) * std
    raw += tl.load(w_ptr + 2).to(tl.float64) * (low + offset) + tl.load(w_ptr + 3).to(tl.float64) * (high + offset)
    p = tl.where(tl.abs(raw) < least, least, tl.abs(raw))  # keeps NaN, unlike tl.maximum
    return p, tl.maximum((high - low) * cap_share, least), raw


@triton.jit
def grid_of(mean, std, low, high, w_ptr, v_ptr, floats_ptr):
    """Step, offset, lowest and highest code of a row, float32."""
    qmin = tl.load(floats_ptr)
    qmax = tl.load(floats_ptr + 1)
    offset = tl.load(v_ptr).to(tl.float64) * mean + tl.load(v_ptr + 1).to(tl.float64) * std
    offset += tl.load(v_ptr + 2).to(tl.float64) * low + tl.load(v_ptr + 3).to(tl.float64) * high
    p, c, _ = _step_and_cap(mean, std, low, high, offset, w_ptr, tl.load(floats_ptr + 2))
    small = tl.where(p < c, p, c)
    ratio = small / tl.where(p < c, c, p)
    ratio = ratio * ratio
    step = (small / tl.sqrt(tl.sqrt(1.0 + ratio * ratio))).to(tl.float32)
    offset = offset.to(tl.float32)
    step = tl.where(mean == mean, step, mean.to(tl.float32))
    zero = clamp(tl.div_rn(offset, step), qmin, qmax)
    lowest = tl.where(low >= 0, tl.ceil(zero), qmin)
    highest = tl.where(high <= 0, tl.floor(zero), qmax)
    return step, offset, lowest, highest


@triton.jit
def grid_gradient(dstep, doffset, lows, highs, stats_ptr, grid_ptr, w_ptr, v_ptr, floats_ptr, M, share_ptr, lead):
    """Gradients of step and offset of a row carried back to its statistics.

    Returns terms t such that ``dx += t0 + t1 x + t2 [x = min] + t3 [x = max]``, float32, and writes the row's share of dw
    and dv (8) where ``lead``.
    """
    dstep = dstep * tl.load(floats_ptr + 3)
    mean = tl.load(stats_ptr).to(tl.float64)
    std = tl.load(stats_ptr + 1).to(tl.float64)
    low = tl.load(stats_ptr + 2).to(tl.float64)
    high = tl.load(stats_ptr + 3).to(tl.float64)
    step = tl.load(grid_ptr).to(tl.float64)
    offset = tl.load(grid_ptr + 1).to(tl.float64)
    p, _, raw = _step_and_cap(mean, std, low, high, offset, w_ptr, tl.load(floats_ptr + 2))
    ratio = step / p
    draw = dstep * (ratio * ratio) * (ratio * ratio) * ratio
    draw = tl.where(raw < 0, -draw, draw)
    shifted = mean + offset
    sign = tl.where(shifted > 0, 1.0, tl.where(shifted < 0, -1.0, 0.0))
    w_low = tl.load(w_ptr + 2).to(tl.float64)
    w_high = tl.load(w_ptr + 3).to(tl.float64)
    dshifted = draw * tl.load(w_ptr).to(tl.float64) * sign
    doffset += dshifted + draw * (w_low + w_high)
    dmean = dshifted + doffset * tl.load(v_ptr).to(tl.float64)
    dstd = draw * tl.load(w_ptr + 1).to(tl.float64) + doffset * tl.load(v_ptr + 1).to(tl.float64)
    dlow = draw * w_low + doffset * tl.load(v_ptr + 2).to(tl.float64)
    dhigh = draw * w_high + doffset * tl.load(v_ptr + 3).to(tl.float64)
    # at std = 0 every value equals the mean, and the gradient is taken as 0
    slope = tl.where(std == 0, 0.0, dstd / (std * tl.maximum(M - 1, 1)))
    tl.store(share_ptr, (draw * tl.abs(shifted)).to(tl.float32), mask=lead)
    tl.store(share_ptr + 1, (draw * std).to(tl.float32), mask=lead)
    tl.store(share_ptr + 2, (draw * (low + offset)).to(tl.float32), mask=lead)
    tl.store(share_ptr + 3, (draw * (high + offset)).to(tl.float32), mask=lead)
    tl.store(share_ptr + 4, (doffset * mean).to(tl.float32), mask=lead)
    tl.store(share_ptr + 5, (doffset * std).to(tl.float32), mask=lead)
    tl.store(share_ptr + 6, (doffset * low).to(tl.float32), mask=lead)
    tl.store(share_ptr + 7, (doffset * high).to(tl.float32), mask=lead)
    term = (dmean / M - slope * mean).to(tl.float32)
    return term, slope.to(tl.float32), (dlow / lows).to(tl.float32), (dhigh / highs).to(tl.float32)
