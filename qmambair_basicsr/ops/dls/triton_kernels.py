"""Triton kernels of ``dls``: statistics in parts, grid, quantization; and the same three steps backwards.

x is (G, M), a row is split into parts of ``part`` values; ``program_id(0)`` is the part, ``program_id(1)`` the row.
"""

import triton
import triton.language as tl

from ..triton_math import clamp, limited, round_half_even


@triton.jit
def part_statistics(x_ptr, parts_ptr, M, part, BLOCK: tl.constexpr):
    """Mean, sum of squared deviations, min and max of one part -> parts (G, 4, P).

    Each block is centred on its own mean and blocks are merged pairwise (Chan, Golub, LeVeque 1983), so that a large
    mean costs no digits.
    """
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * part
    last = tl.minimum(first + part, M)
    seen = 0.0
    mean = 0.0
    square = 0.0
    low = float("inf")
    high = float("-inf")
    for start in range(0, part, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        mask = i < last
        count = tl.maximum(tl.minimum(last - first - start, BLOCK), 0).to(tl.float32)
        x = limited(tl.load(x_ptr + row * M + i, mask=mask, other=0.0))
        block_mean = tl.sum(x, 0) / tl.maximum(count, 1.0)
        centred = tl.where(mask, x - block_mean, 0.0)
        block_square = tl.sum(centred * centred, 0)
        low = tl.minimum(low, tl.min(tl.where(mask, x, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(mask, x, float("-inf")), 0))
        both = tl.maximum(seen + count, 1.0)
        shift = block_mean - mean
        mean += shift * (count / both)
        square += block_square + shift * (
            shift * (seen * count / both)
        )  # the first block: 0, even if the square is inf
        seen += count
    at = parts_ptr + row * 4 * tl.num_programs(0) + tl.program_id(0)
    tl.store(at, mean)
    tl.store(at + tl.num_programs(0), square)
    tl.store(at + 2 * tl.num_programs(0), low)
    tl.store(at + 3 * tl.num_programs(0), high)


@triton.jit
def _step_and_cap(mean, std, low, high, offset, w_ptr, cap_share, floor_share, floor):
    """|w . shifted statistics| and the cap, both floored, and the dot product before the absolute value; float64."""
    least = tl.maximum(tl.abs(low), tl.abs(high)) * floor_share + floor
    raw = tl.load(w_ptr).to(tl.float64) * tl.abs(mean + offset) + tl.load(w_ptr + 1).to(tl.float64) * std
    raw += tl.load(w_ptr + 2).to(tl.float64) * (low + offset) + tl.load(w_ptr + 3).to(tl.float64) * (high + offset)
    p = tl.where(tl.abs(raw) < least, least, tl.abs(raw))  # keeps NaN, unlike tl.maximum
    return p, tl.maximum((high - low) * cap_share, least), raw


@triton.jit
def make_grid(
    parts_ptr,
    w_ptr,
    v_ptr,
    stats_ptr,
    grid_ptr,
    M,
    part,
    parts,
    qmin,
    qmax,
    cap_share,
    floor_share,
    floor,
    BP: tl.constexpr,
):
    """Merge the parts of one row in float64; write its statistics and its step, offset, lowest and highest code."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BP)
    mask = i < parts
    at = parts_ptr + row * 4 * parts + i
    count = tl.where(mask, tl.minimum(M - i.to(tl.int64) * part, part), 0).to(tl.float64)
    means = tl.load(at, mask=mask, other=0.0).to(tl.float64)
    squares = tl.load(at + parts, mask=mask, other=0.0).to(tl.float64)
    mean = tl.sum(means * count, 0) / M
    apart = means - mean
    variance = tl.sum(squares + tl.where(mask, apart * apart, 0.0) * count, 0) / tl.maximum(M - 1, 1)
    low = tl.min(tl.load(at + 2 * parts, mask=mask, other=float("inf")), 0).to(tl.float64)
    high = tl.max(tl.load(at + 3 * parts, mask=mask, other=float("-inf")), 0).to(tl.float64)
    spread = high - low
    std = tl.sqrt(variance)
    std = tl.where(std > spread, spread, std)  # in force only when squares overflow
    low = tl.where(mean == mean, low, mean)  # min and max pass over NaN, the mean does not
    high = tl.where(mean == mean, high, mean)

    offset = tl.load(v_ptr).to(tl.float64) * mean + tl.load(v_ptr + 1).to(tl.float64) * std
    offset += tl.load(v_ptr + 2).to(tl.float64) * low + tl.load(v_ptr + 3).to(tl.float64) * high
    p, c, _ = _step_and_cap(mean, std, low, high, offset, w_ptr, cap_share, floor_share, floor)
    small = tl.where(p < c, p, c)
    ratio = small / tl.where(p < c, c, p)
    ratio = ratio * ratio
    step = (small / tl.sqrt(tl.sqrt(1.0 + ratio * ratio))).to(tl.float32)
    offset = offset.to(tl.float32)
    step = tl.where(mean == mean, step, mean.to(tl.float32))
    zero = clamp(offset / step, qmin, qmax)
    lowest = tl.where(low >= 0, tl.ceil(zero), qmin)
    highest = tl.where(high <= 0, tl.floor(zero), qmax)
    stats_ptr += row * 4
    tl.store(stats_ptr, mean.to(tl.float32))
    tl.store(stats_ptr + 1, std.to(tl.float32))
    tl.store(stats_ptr + 2, low.to(tl.float32))
    tl.store(stats_ptr + 3, high.to(tl.float32))
    grid_ptr += row * 4
    tl.store(grid_ptr, step)
    tl.store(grid_ptr + 1, offset)
    tl.store(grid_ptr + 2, lowest)
    tl.store(grid_ptr + 3, highest)


@triton.jit
def quantize(x_ptr, grid_ptr, out_ptr, M, BLOCK: tl.constexpr):
    """``(clamp(round((x + offset) / step)) - offset / step) * step`` of BLOCK values of one row, bit for bit."""
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < M
    step = tl.load(grid_ptr + row * 4)
    offset = tl.load(grid_ptr + row * 4 + 1)
    lowest = tl.load(grid_ptr + row * 4 + 2)
    highest = tl.load(grid_ptr + row * 4 + 3)
    x = tl.load(x_ptr + row * M + i, mask=mask, other=0.0)
    code = round_half_even(clamp(tl.div_rn(x + offset, tl.zeros_like(x) + step), lowest, highest))
    tl.store(out_ptr + row * M + i, (code - tl.div_rn(offset, step)) * step, mask=mask)


@triton.jit
def part_gradients(grad_ptr, x_ptr, grid_ptr, stats_ptr, parts_ptr, M, part, BLOCK: tl.constexpr):
    """Sums of one part -> parts (G, 4, P): dstep, doffset, values equal to the minimum and to the maximum."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * part
    last = tl.minimum(first + part, M)
    step = tl.load(grid_ptr + row * 4)
    offset = tl.load(grid_ptr + row * 4 + 1)
    lowest = tl.load(grid_ptr + row * 4 + 2)
    highest = tl.load(grid_ptr + row * 4 + 3)
    low = tl.load(stats_ptr + row * 4 + 2)
    high = tl.load(stats_ptr + row * 4 + 3)
    dstep = tl.zeros((BLOCK,), tl.float32)
    doffset = tl.zeros((BLOCK,), tl.float32)
    lows = tl.zeros((BLOCK,), tl.float32)
    highs = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, part, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        mask = i < last
        x = limited(tl.load(x_ptr + row * M + i, mask=mask, other=0.0))
        grad = tl.load(grad_ptr + row * M + i, mask=mask, other=0.0)
        scaled = tl.div_rn(x + offset, tl.zeros_like(x) + step)
        code = clamp(scaled, lowest, highest)
        inside = code == scaled
        dstep += grad * (round_half_even(code) - tl.where(inside, scaled, scaled * 0.0))
        doffset += tl.where(inside, grad, 0.0) - grad
        lows += tl.where(mask & (x == low), 1.0, 0.0)
        highs += tl.where(mask & (x == high), 1.0, 0.0)
    at = parts_ptr + row * 4 * tl.num_programs(0) + tl.program_id(0)
    tl.store(at, tl.sum(dstep, 0))
    tl.store(at + tl.num_programs(0), tl.sum(doffset, 0))
    tl.store(at + 2 * tl.num_programs(0), tl.sum(lows, 0))
    tl.store(at + 3 * tl.num_programs(0), tl.sum(highs, 0))


@triton.jit
def grid_gradient(
    parts_ptr,
    w_ptr,
    v_ptr,
    stats_ptr,
    grid_ptr,
    terms_ptr,
    weights_ptr,
    M,
    parts,
    cap_share,
    floor_share,
    floor,
    grad_scale,
    BP: tl.constexpr,
):
    """Gradients of step and offset of one row carried back to its statistics.

    Writes terms (G, 4), such that ``dx += terms[0] + terms[1] x + terms[2] [x = min] + terms[3] [x = max]``, and the
    row's share of dw and dv, weights (G, 8).
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BP)
    mask = i < parts
    at = parts_ptr + row * 4 * parts + i
    dstep = tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float64), 0) * grad_scale
    doffset = tl.sum(tl.load(at + parts, mask=mask, other=0.0).to(tl.float64), 0)
    lows = tl.sum(tl.load(at + 2 * parts, mask=mask, other=0.0).to(tl.float64), 0)
    highs = tl.sum(tl.load(at + 3 * parts, mask=mask, other=0.0).to(tl.float64), 0)
    mean = tl.load(stats_ptr + row * 4).to(tl.float64)
    std = tl.load(stats_ptr + row * 4 + 1).to(tl.float64)
    low = tl.load(stats_ptr + row * 4 + 2).to(tl.float64)
    high = tl.load(stats_ptr + row * 4 + 3).to(tl.float64)
    step = tl.load(grid_ptr + row * 4).to(tl.float64)
    offset = tl.load(grid_ptr + row * 4 + 1).to(tl.float64)

    p, _, raw = _step_and_cap(mean, std, low, high, offset, w_ptr, cap_share, floor_share, floor)
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
    terms_ptr += row * 4
    tl.store(terms_ptr, (dmean / M - slope * mean).to(tl.float32))
    tl.store(terms_ptr + 1, slope.to(tl.float32))
    tl.store(terms_ptr + 2, (dlow / lows).to(tl.float32))
    tl.store(terms_ptr + 3, (dhigh / highs).to(tl.float32))
    weights_ptr += row * 8
    tl.store(weights_ptr, (draw * tl.abs(shifted)).to(tl.float32))
    tl.store(weights_ptr + 1, (draw * std).to(tl.float32))
    tl.store(weights_ptr + 2, (draw * (low + offset)).to(tl.float32))
    tl.store(weights_ptr + 3, (draw * (high + offset)).to(tl.float32))
    tl.store(weights_ptr + 4, (doffset * mean).to(tl.float32))
    tl.store(weights_ptr + 5, (doffset * std).to(tl.float32))
    tl.store(weights_ptr + 6, (doffset * low).to(tl.float32))
    tl.store(weights_ptr + 7, (doffset * high).to(tl.float32))


@triton.jit
def input_gradient(grad_ptr, x_ptr, grid_ptr, stats_ptr, terms_ptr, dx_ptr, M, BLOCK: tl.constexpr):
    """dx of BLOCK values of one row: the upstream gradient where not clamped, plus the terms of the statistics."""
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < M
    step = tl.load(grid_ptr + row * 4)
    offset = tl.load(grid_ptr + row * 4 + 1)
    lowest = tl.load(grid_ptr + row * 4 + 2)
    highest = tl.load(grid_ptr + row * 4 + 3)
    x = limited(tl.load(x_ptr + row * M + i, mask=mask, other=0.0))
    grad = tl.load(grad_ptr + row * M + i, mask=mask, other=0.0)
    scaled = tl.div_rn(x + offset, tl.zeros_like(x) + step)
    dx = tl.where(clamp(scaled, lowest, highest) == scaled, grad, 0.0)
    dx += tl.load(terms_ptr + row * 4) + tl.load(terms_ptr + row * 4 + 1) * x
    dx += tl.where(x == tl.load(stats_ptr + row * 4 + 2), tl.load(terms_ptr + row * 4 + 2), 0.0)
    dx += tl.where(x == tl.load(stats_ptr + row * 4 + 3), tl.load(terms_ptr + row * 4 + 3), 0.0)
    tl.store(dx_ptr + row * M + i, dx, mask=mask)
