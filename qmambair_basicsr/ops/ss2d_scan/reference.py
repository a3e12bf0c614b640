"""The selective scan over several directions in plain PyTorch: the definition the other backends are tested against.

The recurrence of one direction, with ``dt = softplus(delta + delta_bias)``::

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t . h_t + D x_t

is cut into chunks of ``CHUNK`` tokens. All chunks step through their tokens side by side, first from a zero state to
find what each chunk adds, then, once the states at the chunk borders are known, to find the outputs. Neither pass
stores the (L, N, D) states; the backward pass rebuilds them for a bounded number of tokens at a time.

The decay is applied as ``h + expm1(dt A) h``: for dt near 1e-6, ``exp`` rounds to a number next to 1 and that
rounding, multiplied up over thousands of tokens, would cost two digits in float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")
CHUNK = 64
_BACKWARD_ELEMENTS = 1 << 24  # rebuilt states held at once in the backward pass (64 MiB in float32)


def is_available() -> tuple[bool, str]:
    """Always: it needs torch only."""
    return True, "plain PyTorch"


def to_sequence(t: torch.Tensor, direction: int | torch.Tensor) -> torch.Tensor:
    """Read a map (B, H, W, ...) in a direction's order.

    Args:
        t: map, channels last.
        direction: 0 row-major, 1 column-major, 2 and 3 the same backwards; or the raster positions (H*W,) in the order
            of the visit.

    Returns:
        sequence (B, H*W, ...).
    """
    if isinstance(direction, torch.Tensor):
        return t.flatten(1, 2).index_select(1, direction)
    seq = (t.transpose(1, 2) if direction % 2 else t).flatten(1, 2)
    return seq.flip(1) if direction >= 2 else seq


def to_map(seq: torch.Tensor, direction: int | torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Put a sequence (B, H*W, ...) back at the pixels (B, H, W, ...): the inverse of :func:`to_sequence`."""
    if isinstance(direction, torch.Tensor):
        return torch.empty_like(seq).index_copy_(1, direction.long(), seq).unflatten(1, (height, width))
    seq = seq.flip(1) if direction >= 2 else seq
    if direction % 2:
        return seq.unflatten(1, (width, height)).transpose(1, 2)
    return seq.unflatten(1, (height, width))


def _stack(t: torch.Tensor, directions: list[int] | torch.Tensor) -> torch.Tensor:
    """(B, H, W, K, C), direction k's values at raster positions -> (B, K, L, C) in the order of each direction."""
    return torch.stack([to_sequence(t[:, :, :, k], d) for k, d in enumerate(directions)], 1)


def _unstack(seq: torch.Tensor, directions: list[int] | torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, K, L, C) -> (B, H, W, K, C): the inverse of :func:`_stack`."""
    return torch.stack([to_map(seq[:, k], d, height, width) for k, d in enumerate(directions)], 3)


def _per_direction(x: torch.Tensor, count: int) -> torch.Tensor:
    """A shared map (B, H, W, D) seen once per direction, (B, H, W, K, D); five dimensions stay as they are."""
    return x.unsqueeze(3).expand(-1, -1, -1, count, -1) if x.dim() == 4 else x


def _chunked(seq: torch.Tensor) -> torch.Tensor:
    """(B, K, L, C) -> (T, B, K, chunks, C), padded with zeros (dt = 0 keeps a state as it is)."""
    seq = F.pad(seq, (0, 0, 0, -seq.shape[2] % CHUNK))
    return seq.unflatten(2, (-1, CHUNK)).movedim(3, 0)


def _unchunked(seq: torch.Tensor, length: int) -> torch.Tensor:
    """(T, B, K, chunks, C) -> (B, K, L, C)."""
    return seq.movedim(0, 3).flatten(2, 3)[:, :, :length]


def _decay(dt: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """expm1(dt A) for dt (B, K, chunks, D) and A (K, 1, N, D) -> (B, K, chunks, N, D)."""
    return torch.expm1(dt.unsqueeze(-2) * a)


def _prepare(x, delta, A, B, C, delta_bias, softplus, directions):
    """Inputs in the work precision, in sequence order and in chunks: x, raw delta, dt, A, B, C."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = _stack(_per_direction(x, len(directions)).to(work), directions)  # (B, K, L, D)
    raw = _stack(delta.to(work), directions)
    if delta_bias is not None:
        raw = raw + delta_bias.to(work)[:, None]
    dt = F.softplus(raw) if softplus else raw
    a = A.to(work).transpose(1, 2).unsqueeze(1)  # (K, 1, N, D)
    b, c = (_stack(t.to(work), directions) for t in (B, C))
    return _chunked(x), raw, _chunked(dt), a, _chunked(b), _chunked(c)


def _step(h, dt, a, b, x):
    """One token of every chunk: the next states (B, K, chunks, N, D)."""
    h = torch.addcmul(h, h, _decay(dt, a))
    return h.addcmul_(b.unsqueeze(-1), (dt * x).unsqueeze(-2))


def _carry(local: torch.Tensor, total: torch.Tensor, a: torch.Tensor, reverse: bool) -> torch.Tensor:
    """States at the chunk borders from what each chunk adds.

    Args:
        local: (B, K, chunks, N, D), the end state of each chunk started from zero.
        total: (B, K, chunks, D), sum of dt over each chunk.
        a: (K, 1, N, D).
        reverse: run from the last chunk to the first (the adjoint).
    """
    factor = torch.exp(total.unsqueeze(-2) * a)
    out = torch.empty_like(local)
    h = torch.zeros_like(local[:, :, 0])
    order = range(local.shape[2])
    for i in reversed(order) if reverse else order:
        h = local[:, :, i] + factor[:, :, i] * h
        out[:, :, i] = h
    return out


def _shift(states: torch.Tensor, reverse: bool) -> torch.Tensor:
    """From the state each chunk hands on to the one it is handed: zeros come first (last when reversed)."""
    zero = torch.zeros_like(states[:, :, :1])
    return torch.cat([states[:, :, 1:], zero] if reverse else [zero, states[:, :, :-1]], 2)


def forward(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    softplus: bool,
    directions: list[int] | torch.Tensor,
    merge: bool,
    save_states: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of the scan, and the states the backward pass starts from.

    Args:
        x: (B, H, W, D), read by every direction; or (B, H, W, K, D), one map per direction.
        delta: (B, H, W, K, D).
        A: (K, D, N).
        B, C: (B, H, W, K, N).
        D, delta_bias: (K, D) or None.
        softplus: dt = softplus(delta + delta_bias) instead of the sum itself.
        directions: K codes, 0 row-major, 1 column-major, 2 and 3 the same backwards; or (K, H*W) int32, contiguous, for
            each direction the raster positions in the order of the visit, every row a permutation.
        merge: sum the outputs of the directions; otherwise keep them apart.
        save_states: keep the state after every chunk.

    Returns:
        y (B, H, W, D) or unmerged (B, H, W, K, D), typed as x; states (B, K, n, N, D) after each chunk of ``CHUNK`` tokens with
        n = ceil(H W / CHUNK), or the last state alone, n = 1. float32 (float64 for float64 inputs).
    """
    _, height, width = x.shape[:3]
    length = height * width
    xs, _, dt, a, b, c = _prepare(x, delta, A, B, C, delta_bias, softplus, directions)

    h = dt.new_zeros(*dt.shape[1:4], *a.shape[-2:])  # (B, K, chunks, N, D)
    for t in range(CHUNK):
        h = _step(h, dt[t], a, b[t], xs[t])
    states = _carry(h, dt.sum(0), a, reverse=False)

    h = _shift(states, reverse=False)
    y = torch.empty_like(xs)
    for t in range(CHUNK):
        h = _step(h, dt[t], a, b[t], xs[t])
        torch.sum(h * c[t].unsqueeze(-1), -2, out=y[t])
    if D is not None:
        y.addcmul_(xs, D.to(y.dtype).unsqueeze(1))
    y = _unstack(_unchunked(y, length), directions, height, width)  # (B, H, W, K, D)
    y = y.sum(3) if merge else y
    return y.to(x.dtype), states if save_states else states[:, :, -1:].clone()


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    states: torch.Tensor,
    softplus: bool,
    directions: list[int] | torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of the scan.

    With g_t = dL/dh_t, the adjoint runs the recurrence backwards, g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}; with
    r_t = exp(dt_t A) g_t, the part that flows on to h_{t-1}::

        dC_t = sum_d h_t dy_t       dB_t = sum_d g_t dt_t x_t       dx_t = D dy_t + dt_t sum_n g_t B_t
        dA = sum_t dt_t r_t h_{t-1}     ddt_t = sum_n (A r_t h_{t-1} + g_t B_t x_t)

    Args:
        dy: gradient of y, shaped as this.
        states: what :func:`forward` returned with ``save_states=True``.
        others: as in :func:`forward`.

    Returns:
        gradients of x, delta, A, B, C, D, delta_bias, shaped and typed as these; None where the input is None.
    """
    _, height, width = x.shape[:3]
    length = height * width
    count = len(directions)
    xs, raw, dt, a, b, c = _prepare(x, delta, A, B, C, delta_bias, softplus, directions)
    g_out = _chunked(_stack(_per_direction(dy, count).to(dt.dtype), directions))

    local = torch.zeros_like(states)
    for t in reversed(range(CHUNK)):
        g = torch.addcmul(local, c[t].unsqueeze(-1), g_out[t].unsqueeze(-2))
        local = torch.addcmul(g, g, _decay(dt[t], a))
    incoming = _shift(_carry(local, dt.sum(0), a, reverse=True), reverse=True)
    starts = _shift(states, reverse=False)

    dxs, ddt, db, dc = (torch.empty_like(t) for t in (xs, dt, b, c))
    da = torch.zeros_like(a)
    per_chunk = CHUNK * math.prod(states.shape) // states.shape[2]
    group = max(1, _BACKWARD_ELEMENTS // max(1, per_chunk))
    for i in range(0, states.shape[2], group):
        part = slice(i, i + group)
        da += _backward_group(
            [t[:, :, :, part] for t in (xs, dt, b, c, g_out)],
            a,
            starts[:, :, part],
            incoming[:, :, part],
            [t[:, :, :, part] for t in (dxs, ddt, db, dc)],
        )

    dD = None
    if D is not None:
        dD = (g_out * xs).sum((0, 1, 3)).to(D.dtype)
        dxs.addcmul_(g_out, D.to(dxs.dtype).unsqueeze(1))
    ddelta = _unchunked(ddt, length)
    if softplus:
        ddelta = ddelta * torch.sigmoid(raw)
    dbias = None if delta_bias is None else ddelta.sum((0, 2)).to(delta_bias.dtype)

    dx, ddelta, dB, dC = (
        _unstack(t, directions, height, width)
        for t in (_unchunked(dxs, length), ddelta, _unchunked(db, length), _unchunked(dc, length))
    )
    dx = dx.sum(3) if x.dim() == 4 else dx
    dA = da.squeeze(1).transpose(1, 2).contiguous().to(A.dtype)
    return dx.to(x.dtype), ddelta.to(delta.dtype), dA, dB.to(B.dtype), dC.to(C.dtype), dD, dbias


def _backward_group(inputs, a, h, r, outputs):
    """Backward pass of some chunks; writes their token gradients and returns their share of dA (K, 1, N, D).

    Args:
        inputs: x, dt, B, C, dy of these chunks, (T, B, K, chunks, .).
        a: (K, 1, N, D).
        h: (B, K, chunks, N, D), states before the first token.
        r: (B, K, chunks, N, D), the adjoint that enters after the last token.
        outputs: tensors to fill with dx, ddt, dB, dC.
    """
    x, dt, b, c, g_out = inputs
    dx, ddt, db, dc = outputs
    history = [h]
    for t in range(CHUNK):
        history.append(_step(history[-1], dt[t], a, b[t], x[t]))
    da = torch.zeros_like(r)
    for t in reversed(range(CHUNK)):
        h = history.pop()
        dc[t] = torch.matmul(h, g_out[t].unsqueeze(-1)).squeeze(-1)
        g = torch.addcmul(r, c[t].unsqueeze(-1), g_out[t].unsqueeze(-2))
        db[t] = torch.matmul(g, (dt[t] * x[t]).unsqueeze(-1)).squeeze(-1)
        gb = torch.matmul(b[t].unsqueeze(-2), g).squeeze(-2)  # sum over n of g B
        dx[t] = dt[t] * gb
        r = torch.addcmul(g, g, _decay(dt[t], a))
        flow = r * history[-1]
        ddt[t] = (flow * a).sum(-2).addcmul_(gb, x[t])
        da.addcmul_(flow, dt[t].unsqueeze(-2))
    return da.sum((0, 2)).unsqueeze(1)
