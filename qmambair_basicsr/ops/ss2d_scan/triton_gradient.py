"""Triton kernels of the gradients of the directional selective scan; see ``triton_kernels.py`` for their layout."""

import triton
import triton.language as tl

from .triton_kernels import decay, direction, pixel, plain, softplus


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _entering(m1, q1, e1, f1, m2, q2, e2, f2):
    """As :func:`compose`, along with e h + f of the second map, where h is the state that enters it."""
    return m1 + m2 + m1 * m2, (q1 + m2 * q1) + q2, e2 + e2 * m1, e2 * q1 + f2


@triton.jit
def _swap_halves(bits, P: tl.constexpr, Q: tl.constexpr, BD: tl.constexpr):
    """Exchange neighbouring groups of Q rows: a ^ (a ^ b) = b, which compiles to nothing for rows of one thread."""
    y = tl.reshape(bits, (P, 2, Q, BD))
    y = y ^ tl.expand_dims(tl.xor_sum(y, 1), 1)
    return tl.reshape(y, (2 * P * Q, BD))


@triton.jit
def _flip(x, BD: tl.constexpr):
    """Reverse the 16 rows of x, (16, BD). (``associative_scan(reverse=True)`` would shuffle across lanes instead.)"""
    bits = x.to(tl.int32, bitcast=True)
    bits = _swap_halves(bits, 1, 8, BD)
    bits = _swap_halves(bits, 2, 4, BD)
    bits = _swap_halves(bits, 4, 2, BD)
    bits = _swap_halves(bits, 8, 1, BD)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def to_sequence(
    src_ptr,
    dst_ptr,
    order_ptr,
    sb,
    st,
    sk,
    K,
    H,
    W,
    padded,
    N: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """B or C at raster positions -> float32 (B K, N, padded) in each direction's order, zero past the last token."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    pair = tl.program_id(1).to(tl.int64)
    k = pair % K
    n = tl.arange(0, BN)
    inside = t < H * W
    p = pixel(tl.where(inside, t, 0), direction(order_ptr, k, H, W, LISTED), H, W, LISTED).to(tl.int64)
    src = src_ptr + (pair // K) * sb + k * sk + p[:, None] * st + n[None, :]
    value = tl.load(src, mask=inside[:, None] & (n < N)[None, :], other=0.0).to(tl.float32)
    dst = dst_ptr + pair * N * padded + n[None, :] * padded + t[:, None]
    tl.store(dst, value, mask=(t < padded)[:, None] & (n < N)[None, :])


@triton.jit
def to_raster(
    src_ptr,
    dst_ptr,
    order_ptr,
    K,
    H,
    W,
    padded,
    parts,
    N: tl.constexpr,
    BN: tl.constexpr,
    BT: tl.constexpr,
    LISTED: tl.constexpr,
):
    """dB or dC: partial sums (B K, parts, N, padded) in each direction's order -> contiguous (B, L, K, N) at raster
    positions, added up in a fixed order."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    pair = tl.program_id(1).to(tl.int64)
    k = pair % K
    n = tl.arange(0, BN)
    inside = t < H * W
    mask = inside[:, None] & (n < N)[None, :]
    src = src_ptr + pair * parts * N * padded + n[None, :] * padded + t[:, None]
    total = tl.zeros((BT, BN), tl.float32)
    for _ in range(parts):
        total += tl.load(src, mask=mask, other=0.0)
        src += N * padded
    p = pixel(tl.where(inside, t, 0), direction(order_ptr, k, H, W, LISTED), H, W, LISTED).to(tl.int64)
    dst = dst_ptr + (((pair // K) * H * W + p) * K + k)[:, None] * N + n[None, :]
    tl.store(dst, total, mask=mask)


@triton.jit
def gradient_chunk(
    dy_ptr,
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    a_ptr,
    skip_ptr,
    bias_ptr,
    order_ptr,
    states_ptr,
    r_ptr,
    dx_ptr,
    ddt_ptr,
    db_ptr,
    dc_ptr,
    da_ptr,
    dskip_ptr,
    dbias_ptr,
    gb,
    gt,
    gk,
    xb,
    xt,
    xk,
    sb,
    st,
    sk,
    dxb,
    dxt,
    dxk,
    K,
    D,
    H,
    W,
    padded,
    N: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Gradients of one chunk, 16 tokens at a time from its end; within these, one n at a time.

    ``states``: the state before every 16th token. ``r``: slot c + 1 holds the adjoint that enters chunk c from its
    successor and is brought up to date after each 16 tokens; ``da``: this chunk's share of dA, zero at first. Both are
    touched by this program only, each element by one thread.
    """
    T: tl.constexpr = 16
    block = tl.program_id(0)
    d = block * BD + tl.arange(0, BD)
    chunk = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(1)
    batch = pair // K
    k = pair % K
    length = H * W
    in_d = d < D
    rows = tl.arange(0, T)
    is_first = rows[:, None] == 0
    way = direction(order_ptr, k, H, W, LISTED)

    bias = tl.zeros((BD,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + k * D + d, mask=in_d, other=0.0)
    dy_ptr += batch * gb + k * gk
    x_ptr += batch * xb + k * xk
    dt_ptr += batch * sb + k * sk
    dx_ptr += batch * dxb + k * dxk
    ddt_ptr += (batch * length * K + k) * D
    b_ptr += pair * N * padded
    c_ptr += pair * N * padded
    db_ptr += (pair * tl.num_programs(0) + block) * N * padded
    dc_ptr += (pair * tl.num_programs(0) + block) * N * padded
    a_ptr += k * N * D
    r_ptr += (pair * (chunks + 1) + chunk + 1) * N * D
    da_ptr += (pair * chunks + chunk) * N * D
    dbias = tl.zeros((BD,), tl.float32)
    dskip = tl.zeros((BD,), tl.float32)

    tiles = tl.cdiv(tl.minimum(CHUNK, length - chunk * CHUNK), T)
    for back in range(tiles):
        tile = chunk * (CHUNK // T) + tiles - 1 - back
        t = tile * T + rows
        inside = t < length
        mask = inside[:, None] & in_d[None, :]
        p = pixel(tl.where(inside, t, 0), way, H, W, LISTED).to(tl.int64)
        raw = tl.load(dt_ptr + plain(p, st, d), mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        dt = raw
        if SOFTPLUS:
            dt = softplus(raw)
        dt = tl.where(inside[:, None], dt, 0.0)
        dtx = dt * tl.load(x_ptr + plain(p, xt, d), mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + plain(p, gt, d), mask=mask, other=0.0).to(tl.float32)
        gb_sum = tl.zeros((T, BD), tl.float32)
        flow_sum = tl.zeros((T, BD), tl.float32)
        zero = tl.zeros((T, BD), tl.float32)
        states = states_ptr + (pair * chunks * (CHUNK // T) + tile) * N * D
        for n in range(N):
            a = tl.load(a_ptr + n * D + d, mask=in_d, other=0.0)
            b = tl.load(b_ptr + n * padded + t)[:, None]
            c = tl.load(c_ptr + n * padded + t)[:, None]
            h = tl.load(states + n * D + d, mask=in_d, other=0.0)[None, :]
            r = tl.load(r_ptr + n * D + d, mask=in_d, other=0.0)[None, :]
            m, factor = decay(dt * a[None, :])
            # decayed = exp(dt A) h_{t-1}: the state entering each token, through that token's decay. Where the decay is
            # strong, (1 + m) h would keep few of its digits, and the gradient of A is a sum of just these
            add = dtx * b
            start = factor * h
            _, h_all, _, decayed = tl.associative_scan(
                (
                    m,
                    tl.where(is_first, start + add, add),
                    tl.where(is_first, zero, factor),
                    tl.where(is_first, start, zero),
                ),
                0,
                _entering,
            )
            # g = C dy + r_{t+1}, r = exp(dt A) g, in reversed order
            m = _flip(m, BD)
            add = _flip(dy * c, BD)
            add = tl.where(is_first, add + r, add)
            _, r_all, _, g = tl.associative_scan((m, _flip(factor, BD) * add, zero + 1.0, add), 0, _entering)
            g = _flip(g, BD)
            tl.store(db_ptr + n * padded + t, tl.sum(g * dtx, 1))
            tl.store(dc_ptr + n * padded + t, tl.sum(h_all * dy, 1))
            gb_sum += g * b
            flow = g * decayed
            flow_sum += flow * a[None, :]
            tl.store(r_ptr + n * D + d, tl.sum(tl.where(rows[:, None] == T - 1, r_all, 0.0), 0), mask=in_d)
            da = tl.load(da_ptr + n * D + d, mask=in_d, other=0.0)
            tl.store(da_ptr + n * D + d, da + tl.sum(flow * dt, 0), mask=in_d)
        # read again: holding raw and x through the loop over n would cost 32 registers
        x = tl.load(x_ptr + plain(p, xt, d), mask=mask, other=0.0).to(tl.float32)
        ddt = 0.69314718 * flow_sum + gb_sum * x  # ln 2: a is A log2(e)
        if SOFTPLUS:
            raw = tl.load(dt_ptr + plain(p, st, d), mask=mask, other=0.0).to(tl.float32) + bias[None, :]
            ddt = ddt * _sigmoid(raw)
        ddt = tl.where(inside[:, None], ddt, 0.0)
        tl.store(ddt_ptr + plain(p, K * D, d), ddt, mask=mask)
        dbias += tl.sum(ddt, 0)
        dx = gb_sum * dt
        if HAS_SKIP:
            dx += dy * tl.load(skip_ptr + k * D + d, mask=in_d, other=0.0)[None, :]
            dskip += tl.sum(dy * x, 0)
        tl.store(dx_ptr + plain(p, dxt, d), dx, mask=mask)
        tl.debug_barrier()
    at = (pair * chunks + chunk) * D + d
    if HAS_BIAS:
        tl.store(dbias_ptr + at, dbias, mask=in_d)
    if HAS_SKIP:
        tl.store(dskip_ptr + at, dskip, mask=in_d)
