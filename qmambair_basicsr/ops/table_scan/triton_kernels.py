"""Triton kernels of the scan on codes; ``triton.py`` launches them.

As in the kernels of ``ss2d_scan`` a program owns a block of channels, one chunk of tokens and one image and direction,
with its states as a tile (N, BD). The decay of a token is a row of the table, exp(dt A) - 1, which is contiguous over the
states, so that neighbouring lanes read neighbouring words of it.
"""

import triton
import triton.language as tl

from ..ss2d_scan.triton_kernels import compose, direction, pixel, plain
from ..triton_math import clamp, round_half_even


@triton.jit
def _code(raw, grid_ptr):
    """The code of a value that enters its grid: step, offset, lowest and highest code."""
    step = tl.load(grid_ptr)
    found = tl.div_rn(raw + tl.load(grid_ptr + 1), step)
    return round_half_even(clamp(found, tl.load(grid_ptr + 2), tl.load(grid_ptr + 3)))


@triton.jit
def _value(raw, grid_ptr, KIND: tl.constexpr, BITS: tl.constexpr):
    """Values of a map: as they are (KIND 0), of codes plus 2^(BITS - 1) (1), or put on the grid (2)."""
    value = raw.to(tl.float32)
    if KIND > 0:
        step = tl.load(grid_ptr)
        if KIND == 1:
            code = value - (1 << (BITS - 1))
        else:
            code = _code(value, grid_ptr)
        value = (code - tl.div_rn(tl.load(grid_ptr + 1), step)) * step
    return value


@triton.jit
def table_chunk(
    x_ptr, q_ptr, b_ptr, c_ptr, decays_ptr, steps_ptr, skip_ptr, order_ptr,
    x_grid, q_grid, b_grid, c_grid, xg, qg, bg, cg,
    states_ptr, change_ptr, y_ptr,
    xb, xt, xk, qb, qt, qk, bb, bt, bk, cb, ct, ck, yb, yt, yk,
    tables, K, D, H, W,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr, ROW: tl.constexpr,
    BITS: tl.constexpr, X_BITS: tl.constexpr, B_BITS: tl.constexpr, C_BITS: tl.constexpr,
    X_KIND: tl.constexpr, Q_KIND: tl.constexpr, B_KIND: tl.constexpr, C_KIND: tl.constexpr,
    HAS_SKIP: tl.constexpr, LISTED: tl.constexpr, OUTPUT: tl.constexpr,
):  # fmt: skip
    """One chunk: from a zero state what it adds and by what factor minus 1 it changes a state, or from its state y.

    ``xg`` and the like: numbers between the grids of two images, 0 for one grid. ``tables``: between their tables.
    """
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    chunk = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(1)
    image = pair // K
    k = pair % K
    in_d = d < D
    n = tl.arange(0, BN)
    in_n = n < N
    tile = plain(n, D, d)
    in_tile = in_n[:, None] & in_d[None, :]
    way = direction(order_ptr, k, H, W, LISTED)
    x_ptr += image * xb + k * xk
    q_ptr += image * qb + k * qk
    b_ptr += image * bb + k * bk
    c_ptr += image * cb + k * ck
    x_grid += image * xg
    q_grid += image * qg
    b_grid += image * bg
    c_grid += image * cg
    first_row = (image * tables + k * D + d) * LEVELS
    skip = tl.zeros((BD,), tl.float32)
    if HAS_SKIP:
        skip = tl.load(skip_ptr + k * D + d, mask=in_d, other=0.0)
    h = tl.zeros((BN, BD), tl.float32)
    change = tl.zeros((BN, BD), tl.float32)
    if OUTPUT:
        before = states_ptr + (pair * chunks + chunk - 1) * N * D
        states = tl.where(chunk > 0, N, 0)
        h = tl.load(before + tile, mask=(n < states)[:, None] & in_d[None, :], other=0.0)
    start = chunk * CHUNK
    for t in range(start, tl.minimum(start + CHUNK, H * W)):
        p = pixel(t, way, H, W, LISTED).to(tl.int64)
        raw = tl.load(q_ptr + p * qt + d, mask=in_d, other=0)
        if Q_KIND == 1:
            code = raw.to(tl.int32) & ((1 << BITS) - 1)
        else:
            code = _code(raw.to(tl.float32), q_grid).to(tl.int32) + (1 << (BITS - 1))
        row = first_row + code
        step = tl.load(steps_ptr + row, mask=in_d, other=0.0)
        m = tl.load(decays_ptr + row[None, :] * ROW + n[:, None], mask=in_tile, other=0.0)
        x = _value(tl.load(x_ptr + p * xt + d, mask=in_d, other=0), x_grid, X_KIND, X_BITS)
        b = _value(tl.load(b_ptr + p * bt + n, mask=in_n, other=0), b_grid, B_KIND, B_BITS)
        b = tl.where(in_n, b, 0.0)
        h = h + (m * h + b[:, None] * (step * x)[None, :])
        if OUTPUT:
            c = _value(tl.load(c_ptr + p * ct + n, mask=in_n, other=0), c_grid, C_KIND, C_BITS)
            y = tl.sum(h * tl.where(in_n, c, 0.0)[:, None], 0)
            if HAS_SKIP:
                y += skip * x
            tl.store(y_ptr + image * yb + k * yk + p * yt + d, y, mask=in_d)
        else:
            change = change + (m + m * change)
    if not OUTPUT:
        out = (pair * chunks + chunk) * N * D + tile
        tl.store(states_ptr + out, h, mask=in_tile)
        tl.store(change_ptr + out, change, mask=in_tile)


@triton.jit
def table_carry(states_ptr, change_ptr, D, chunks, N: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr):
    """In place: what every chunk adds becomes the state after it; one n of a block of channels per program."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    pair = tl.program_id(2).to(tl.int64)
    in_d = d < D
    i = tl.arange(0, BC)
    first = (pair * chunks * N + tl.program_id(1)) * D
    h = tl.zeros((BD,), tl.float32)
    for start in range(0, chunks, BC):
        at = first + plain((start + i).to(tl.int64), N * D, d)
        mask = (start + i < chunks)[:, None] & in_d[None, :]
        q = tl.load(states_ptr + at, mask=mask, other=0.0)
        m = tl.load(change_ptr + at, mask=mask, other=0.0)
        q = tl.where(i[:, None] == 0, q + (h[None, :] + m * h[None, :]), q)
        _, q = tl.associative_scan((m, q), 0, compose)
        tl.store(states_ptr + at, q, mask=mask)
        h = tl.sum(tl.where(i[:, None] == BC - 1, q, 0.0), 0)
