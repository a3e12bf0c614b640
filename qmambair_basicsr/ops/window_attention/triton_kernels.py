"""Triton kernels of ``window_attention``: tiles of BQ queries and BK keys of one window and head.

T, and the padded channels D of a head, are powers of two. Tiles are worked out anew in the backward pass, from the largest
logit and the inverse of the sum of exponentials of each row. The bias comes as (heads, T, T).
"""

import triton
import triton.language as tl


@triton.jit
def _window(order_ptr, n, windows, block, WIDTH: tl.constexpr, T: tl.constexpr):
    """Of the n-th window of all images: its number, its image, and the tokens of a block and their positions in the image."""
    window = n % windows
    tokens = block * WIDTH + tl.arange(0, WIDTH)
    return window, (n // windows).to(tl.int64), tokens, tl.load(order_ptr + window * T + tokens).to(tl.int64)


@triton.jit
def _rows(base_ptr, positions, d, token_stride, D: tl.constexpr):
    """Channels of a head of some tokens, (tokens, D) float32, padded with zeros."""
    c = tl.arange(0, D)
    at = base_ptr + positions[:, None] * token_stride + c[None, :]
    return tl.load(at, mask=(c < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store(base_ptr, positions, d, token_stride, value, D: tl.constexpr):
    c = tl.arange(0, D)
    tl.store(base_ptr + positions[:, None] * token_stride + c[None, :], value, mask=(c < d)[None, :])


@triton.jit
def _bias(bias_ptr, regions_ptr, queries, keys, MASKED: tl.constexpr, HAS_REGIONS: tl.constexpr, T: tl.constexpr):
    """What is added to the logits of a tile; the pointer to regions is the window's."""
    bias = tl.load(bias_ptr + queries[:, None] * T + keys[None, :])
    if HAS_REGIONS:
        own, other = tl.load(regions_ptr + queries), tl.load(regions_ptr + keys)
        bias += tl.where(own[:, None] == other[None, :], 0.0, MASKED)
    return bias


@triton.jit
def attention_forward(
    qkv_ptr,
    bias_ptr,
    order_ptr,
    regions_ptr,
    out_ptr,
    norms_ptr,
    scale,
    image_stride,
    token_stride,
    length,
    windows,
    channels,
    d,
    MASKED: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output of BQ queries of one window and head; largest logits and inverse sums -> norms (B, windows, heads, 2, T)."""
    n = tl.program_id(0) // (T // BQ)
    head = tl.program_id(1)
    window, image, queries, positions = _window(order_ptr, n, windows, tl.program_id(0) % (T // BQ), BQ, T)
    qkv_ptr += image * image_stride + head * d
    bias_ptr += head * (T * T)
    q = _rows(qkv_ptr, positions, d, token_stride, D)
    largest = tl.full((BQ,), float("-inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    out = tl.zeros((BQ, D), tl.float32)
    for block in range(0, T // BK):
        _, _, keys, places = _window(order_ptr, n, windows, block, BK, T)
        k = _rows(qkv_ptr + channels, places, d, token_stride, D)
        v = _rows(qkv_ptr + 2 * channels, places, d, token_stride, D)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        logits += _bias(bias_ptr, regions_ptr + window * T, queries, keys, MASKED, HAS_REGIONS, T)
        new = tl.maximum(largest, tl.max(logits, 1))
        kept = tl.exp(largest - new)
        p = tl.exp(logits - new[:, None])
        total = total * kept + tl.sum(p, 1)
        out = out * kept[:, None] + tl.dot(p, v, input_precision=PRECISION)
        largest = new
    inverse = 1.0 / total
    _store(out_ptr + image * length * channels + head * d, positions, d, channels, out * inverse[:, None], D)
    norms_ptr += (n.to(tl.int64) * tl.num_programs(1) + head) * (2 * T)
    tl.store(norms_ptr + queries, largest)
    tl.store(norms_ptr + T + queries, inverse)


@triton.jit
def _tile(q, k, v, dout, dots, norms_ptr, queries, bias, scale, T: tl.constexpr, PRECISION: tl.constexpr):
    """Attention map of a tile, and the gradient of its logits; ``dots``: dout . out of every query."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias
    p = tl.exp(logits - tl.load(norms_ptr + queries)[:, None]) * tl.load(norms_ptr + T + queries)[:, None]
    return p, p * (tl.dot(dout, tl.trans(v), input_precision=PRECISION) - dots[:, None])


@triton.jit
def query_gradient(
    dout_ptr,
    qkv_ptr,
    bias_ptr,
    order_ptr,
    regions_ptr,
    out_ptr,
    norms_ptr,
    dqkv_ptr,
    dots_ptr,
    scale,
    image_stride,
    token_stride,
    length,
    windows,
    channels,
    d,
    MASKED: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of BQ queries of one window and head, and dout . out of them -> dots (B, windows, heads, T)."""
    n = tl.program_id(0) // (T // BQ)
    head = tl.program_id(1)
    window, image, queries, positions = _window(order_ptr, n, windows, tl.program_id(0) % (T // BQ), BQ, T)
    qkv_ptr += image * image_stride + head * d
    map_at = image * length * channels + head * d
    place = n.to(tl.int64) * tl.num_programs(1) + head
    q = _rows(qkv_ptr, positions, d, token_stride, D)
    dout = _rows(dout_ptr + map_at, positions, d, channels, D)
    dots = tl.sum(dout * _rows(out_ptr + map_at, positions, d, channels, D), 1)
    tl.store(dots_ptr + place * T + queries, dots)
    dq = tl.zeros((BQ, D), tl.float32)
    for block in range(0, T // BK):
        _, _, keys, places = _window(order_ptr, n, windows, block, BK, T)
        k = _rows(qkv_ptr + channels, places, d, token_stride, D)
        v = _rows(qkv_ptr + 2 * channels, places, d, token_stride, D)
        bias = _bias(bias_ptr + head * (T * T), regions_ptr + window * T, queries, keys, MASKED, HAS_REGIONS, T)
        _, dlogits = _tile(q, k, v, dout, dots, norms_ptr + place * (2 * T), queries, bias, scale, T, PRECISION)
        dq += tl.dot(dlogits, k, input_precision=PRECISION)
    _store(dqkv_ptr + image * length * 3 * channels + head * d, positions, d, 3 * channels, dq * scale, D)


@triton.jit
def key_gradient(
    dout_ptr,
    qkv_ptr,
    bias_ptr,
    order_ptr,
    regions_ptr,
    norms_ptr,
    dqkv_ptr,
    dots_ptr,
    scale,
    image_stride,
    token_stride,
    length,
    windows,
    channels,
    d,
    MASKED: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of BK keys and their values of one window and head."""
    n = tl.program_id(0) // (T // BK)
    head = tl.program_id(1)
    window, image, keys, places = _window(order_ptr, n, windows, tl.program_id(0) % (T // BK), BK, T)
    qkv_ptr += image * image_stride + head * d
    dout_ptr += image * length * channels + head * d
    place = n.to(tl.int64) * tl.num_programs(1) + head
    k = _rows(qkv_ptr + channels, places, d, token_stride, D)
    v = _rows(qkv_ptr + 2 * channels, places, d, token_stride, D)
    dk = tl.zeros((BK, D), tl.float32)
    dv = tl.zeros((BK, D), tl.float32)
    for block in range(0, T // BQ):
        _, _, queries, positions = _window(order_ptr, n, windows, block, BQ, T)
        q = _rows(qkv_ptr, positions, d, token_stride, D)
        dout = _rows(dout_ptr, positions, d, channels, D)
        dots = tl.load(dots_ptr + place * T + queries)
        bias = _bias(bias_ptr + head * (T * T), regions_ptr + window * T, queries, keys, MASKED, HAS_REGIONS, T)
        p, dlogits = _tile(q, k, v, dout, dots, norms_ptr + place * (2 * T), queries, bias, scale, T, PRECISION)
        dv += tl.dot(tl.trans(p), dout, input_precision=PRECISION)
        dk += tl.dot(tl.trans(dlogits), q, input_precision=PRECISION)
    dqkv_ptr += image * length * 3 * channels + channels + head * d
    _store(dqkv_ptr, places, d, 3 * channels, dk * scale, D)
    _store(dqkv_ptr + channels, places, d, 3 * channels, dv, D)


@triton.jit
def bias_gradient(
    dout_ptr,
    qkv_ptr,
    bias_ptr,
    order_ptr,
    regions_ptr,
    norms_ptr,
    dbias_ptr,
    dots_ptr,
    scale,
    image_stride,
    token_stride,
    length,
    windows,
    channels,
    d,
    total,
    group,
    MASKED: tl.constexpr,
    HAS_REGIONS: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a tile of logits of one head, summed over ``group`` of the ``total`` windows of all images, one after the
    other -> dbias (groups, heads, T, T)."""
    head = tl.program_id(1)
    part = tl.program_id(0) // (T // BQ * (T // BK))
    tile = tl.program_id(0) % (T // BQ * (T // BK))
    bias_ptr += head * (T * T)
    dbias = tl.zeros((BQ, BK), tl.float32)
    for n in range(part * group, tl.minimum(part * group + group, total)):
        window, image, queries, positions = _window(order_ptr, n, windows, tile // (T // BK), BQ, T)
        _, _, keys, places = _window(order_ptr, n, windows, tile % (T // BK), BK, T)
        base_ptr = qkv_ptr + image * image_stride + head * d
        place = (image * windows + window) * tl.num_programs(1) + head
        q = _rows(base_ptr, positions, d, token_stride, D)
        k = _rows(base_ptr + channels, places, d, token_stride, D)
        v = _rows(base_ptr + 2 * channels, places, d, token_stride, D)
        dout = _rows(dout_ptr + image * length * channels + head * d, positions, d, channels, D)
        dots = tl.load(dots_ptr + place * T + queries)
        bias = _bias(bias_ptr, regions_ptr + window * T, queries, keys, MASKED, HAS_REGIONS, T)
        _, dlogits = _tile(q, k, v, dout, dots, norms_ptr + place * (2 * T), queries, bias, scale, T, PRECISION)
        dbias += dlogits
    rows = (tile // (T // BK)) * BQ + tl.arange(0, BQ)
    columns = (tile % (T // BK)) * BK + tl.arange(0, BK)
    dbias_ptr += (part.to(tl.int64) * tl.num_programs(1) + head) * (T * T)
    tl.store(dbias_ptr + rows[:, None] * T + columns[None, :], dbias)


@triton.jit
def table_gradient(dbias_ptr, pairs_ptr, starts_ptr, dtable_ptr, groups, heads, T: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of one row of the table and one head: the sum over its pairs of tokens and all groups, in a fixed order."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(starts_ptr + row)
    stop = tl.load(starts_ptr + row + 1)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(start, stop, BLOCK):
        i = first + tl.arange(0, BLOCK)
        pair = tl.load(pairs_ptr + i, mask=i < stop, other=0)
        for g in range(0, groups):
            at = dbias_ptr + (g * heads + head) * (T * T) + pair
            total += tl.load(at, mask=i < stop, other=0.0).to(tl.float64)
    tl.store(dtable_ptr + row * heads + head, tl.sum(total, 0))
