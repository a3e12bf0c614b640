"""Triton kernels of the directional selective scan; ``triton.py`` launches them and explains the passes.

A program owns a block of channels (``program_id(0)``), one chunk of tokens (1) and one batch element and direction (2).
Its tiles are (N, BD) or (T, BD) with one channel per lane, so that every thread keeps whole columns: the recurrence and
the sums over N and over tokens stay in its registers, and only dB and dC need sums across lanes. Triton would rather
vectorise the loads, which spreads a column over lanes; ``plain`` takes the alignment that leads it there away.

The decay is applied as ``h + m h`` with ``m = expm1(dt A)``: for small dt A, ``exp`` rounds to a number next to 1, and
that rounding adds up over thousands of tokens. ``a_ptr`` points at A log2(e), so that powers of two can be taken.
"""

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + 2 atanh(s), s = e / (2 + e), e = exp(-|x|).

    atanh(s) / s is a polynomial in s^2, interpolated at the Chebyshev nodes of [0, 1/9]: relative error 4e-9.
    """
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    p = 0.33333161 + q * (0.20012298 + q * (0.13982579 + q * 0.14078889))
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * p)


@triton.jit
def expm1(z):
    """2^z - 1 for z <= 0: its series where 2^z is near 1, relative error below 3e-6 everywhere."""
    series = z * (0.69314718 + z * (0.24022651 + z * (0.055504109 + z * 0.0096181291)))
    return tl.where(tl.abs(z) < 0.14, series, tl.exp2(z) - 1.0)


@triton.jit
def decay(z):
    """2^z - 1 and 2^z for z <= 0, each to the last digits: the sum of one and 1 has lost those of the other."""
    m = expm1(z)
    return m, tl.where(tl.abs(z) < 0.14, 1.0 + m, tl.exp2(z))


@triton.jit
def direction(order_ptr, k, H, W, LISTED: tl.constexpr):
    """The argument of :func:`pixel` for direction k: its code, or the start of its list of pixels."""
    if LISTED:
        found = order_ptr + k * H * W
    else:
        found = tl.load(order_ptr + k)
    return found


@triton.jit
def pixel(t, way, H, W, LISTED: tl.constexpr):
    """Raster position of token t in a direction: 0 row-major, 1 column-major, 2 and 3 the same backwards; or listed."""
    if LISTED:
        p = tl.load(way + t)
    else:
        s = tl.where(way >= 2, H * W - 1 - t, t)
        p = tl.where(way % 2 == 1, (s % H) * W + s // H, s)
    return p


@triton.jit
def plain(rows, stride, cols):
    """Offsets of a tile, declared unaligned: see the module's docstring."""
    return tl.multiple_of(rows[:, None] * stride + cols[None, :], (1, 1))


@triton.jit
def compose(m1, q1, m2, q2):
    """The map h -> h + m1 h + q1 followed by h -> h + m2 h + q2."""
    return m1 + m2 + m1 * m2, (q1 + m2 * q1) + q2


@triton.jit
def forward_chunk(
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    a_ptr,
    skip_ptr,
    bias_ptr,
    order_ptr,
    enter_ptr,
    out_ptr,
    sums_ptr,
    y_ptr,
    xb,
    xt,
    xk,
    sb,
    st,
    sk,
    bb,
    bt,
    bk,
    cb,
    ct,
    ck,
    yb,
    yt,
    yk,
    K,
    D,
    H,
    W,
    N: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
    T: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LISTED: tl.constexpr,
    MODE: tl.constexpr,
):
    """Run the recurrence over one chunk. MODE 0: from zero, keep the last state and the sum of dt; 1: from the state
    that enters, write y; 2: from the state that enters, keep the state before every T-th token."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    chunk = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(1)
    batch = pair // K
    k = pair % K
    in_d = d < D
    n = tl.arange(0, BN)
    in_n = n < N
    tile = plain(n, D, d)
    in_tile = in_n[:, None] & in_d[None, :]

    way = direction(order_ptr, k, H, W, LISTED)
    a = tl.load(a_ptr + k * N * D + tile, mask=in_tile, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + k * D + d, mask=in_d, other=0.0)
    if HAS_SKIP:
        skip = tl.load(skip_ptr + k * D + d, mask=in_d, other=0.0)
    x_ptr += batch * xb + k * xk
    dt_ptr += batch * sb + k * sk
    b_ptr += batch * bb + k * bk
    c_ptr += batch * cb + k * ck
    y_ptr += batch * yb + k * yk

    h = tl.zeros((BN, BD), tl.float32)
    if MODE > 0:
        entering = enter_ptr + (pair * chunks + chunk - 1) * N * D
        states = tl.where(chunk > 0, N, 0)  # the first chunk starts from zero
        h = tl.load(entering + tile, mask=(n < states)[:, None] & in_d[None, :], other=0.0)
    total = tl.zeros((BD,), tl.float32)
    first = chunk * CHUNK
    steps = tl.minimum(CHUNK, H * W - first)
    p = pixel(first, way, H, W, LISTED)
    if not LISTED:
        # from token to token: one pixel or one row on, and at the end of a line to the start of the next
        last = H * W - 1
        step = tl.where(way % 2 == 1, W, 1)
        step = tl.where(way >= 2, -step, step)
    for i in range(steps):
        if MODE == 2:  # noqa: SIM102 (this one is decided when the kernel is compiled)
            if i % T == 0:
                out = out_ptr + (pair * chunks * (CHUNK // T) + chunk * (CHUNK // T) + i // T) * N * D
                tl.store(out + tile, h, mask=in_tile)
        row = p.to(tl.int64)
        raw = tl.load(dt_ptr + row * st + d, mask=in_d, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * xt + d, mask=in_d, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + row * bt + n, mask=in_n, other=0.0).to(tl.float32)
        if HAS_BIAS:
            raw += bias
        dt = raw
        if SOFTPLUS:
            dt = softplus(raw)
        m = expm1(dt[None, :] * a)
        h = h + (m * h + b[:, None] * (dt * x)[None, :])
        if MODE == 0:
            total += dt
        if MODE == 1:
            c = tl.load(c_ptr + row * ct + n, mask=in_n, other=0.0).to(tl.float32)
            y = tl.sum(h * c[:, None], 0)
            if HAS_SKIP:
                y += skip * x
            tl.store(y_ptr + row * yt + d, y, mask=in_d)
        if LISTED:
            p = tl.load(way + first + tl.minimum(i + 1, steps - 1))
        else:
            p += step
            p = tl.where(p > last, p - last, tl.where(p < 0, p + last, p))
    if MODE == 0:
        at = pair * chunks + chunk
        tl.store(out_ptr + at * N * D + tile, h, mask=in_tile)
        tl.store(sums_ptr + at * D + d, total, mask=in_d)


@triton.jit
def adjoint_chunk(
    dy_ptr,
    dt_ptr,
    c_ptr,
    a_ptr,
    bias_ptr,
    order_ptr,
    out_ptr,
    sums_ptr,
    gb,
    gt,
    gk,
    sb,
    st,
    sk,
    cb,
    ct,
    ck,
    K,
    D,
    H,
    W,
    N: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Run the adjoint r <- exp(dt A) (r + C dy) backwards over one chunk from zero; keep its last value, sum dt."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    chunk = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(1)
    batch = pair // K
    k = pair % K
    in_d = d < D
    n = tl.arange(0, BN)
    in_n = n < N
    tile = plain(n, D, d)
    in_tile = in_n[:, None] & in_d[None, :]

    way = direction(order_ptr, k, H, W, LISTED)
    a = tl.load(a_ptr + k * N * D + tile, mask=in_tile, other=0.0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + k * D + d, mask=in_d, other=0.0)
    dy_ptr += batch * gb + k * gk
    dt_ptr += batch * sb + k * sk
    c_ptr += batch * cb + k * ck

    r = tl.zeros((BN, BD), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    first = chunk * CHUNK
    steps = tl.minimum(CHUNK, H * W - first)
    p = pixel(first + steps - 1, way, H, W, LISTED)
    if not LISTED:
        last = H * W - 1
        step = tl.where(way % 2 == 1, W, 1)
        step = tl.where(way >= 2, step, -step)  # towards the first token
    for i in range(steps):
        row = p.to(tl.int64)
        raw = tl.load(dt_ptr + row * st + d, mask=in_d, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * gt + d, mask=in_d, other=0.0).to(tl.float32)
        c = tl.load(c_ptr + row * ct + n, mask=in_n, other=0.0).to(tl.float32)
        if HAS_BIAS:
            raw += bias
        dt = raw
        if SOFTPLUS:
            dt = softplus(raw)
        r = r + c[:, None] * dy[None, :]
        r = r + r * expm1(dt[None, :] * a)
        total += dt
        if LISTED:
            p = tl.load(way + first + tl.maximum(steps - 2 - i, 0))
        else:
            p += step
            p = tl.where(p > last, p - last, tl.where(p < 0, p + last, p))
    at = pair * chunks + chunk
    tl.store(out_ptr + at * N * D + tile, r, mask=in_tile)
    tl.store(sums_ptr + at * D + d, total, mask=in_d)


@triton.jit
def carry(
    local_ptr,
    sums_ptr,
    a_ptr,
    out_ptr,
    out_pair,
    K,
    D,
    chunks,
    N: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """The state after every chunk from what each chunk adds (started from zero) and its sum of dt; one n per program.

    ``out_pair``: elements between two (batch, direction) pairs of the output.
    """
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    n = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    in_d = d < D
    i = tl.arange(0, BC)
    a = tl.load(a_ptr + ((pair % K) * N + n) * D + d, mask=in_d, other=0.0)
    local_ptr += pair * chunks * N * D + n * D
    sums_ptr += pair * chunks * D
    out_ptr += pair * out_pair + n * D
    h = tl.zeros((BD,), tl.float32)
    for start in range(0, chunks, BC):
        c = start + i
        if REVERSE:
            c = chunks - 1 - c
        mask = (start + i < chunks)[:, None] & in_d[None, :]
        wide = c.to(tl.int64)
        q = tl.load(local_ptr + plain(wide, N * D, d), mask=mask, other=0.0)
        m = expm1(tl.load(sums_ptr + plain(wide, D, d), mask=mask, other=0.0) * a[None, :])
        q = tl.where(i[:, None] == 0, q + (h[None, :] + m * h[None, :]), q)
        _, q = tl.associative_scan((m, q), 0, compose)
        tl.store(out_ptr + plain(wide, N * D, d), q, mask=mask)
        h = tl.sum(tl.where(i[:, None] == BC - 1, q, 0.0), 0)
