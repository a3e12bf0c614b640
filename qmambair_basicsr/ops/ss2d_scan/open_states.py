"""The scan with rounded states on any backend: the states of all pixels come from its ordinary scan.

With one state for each channel and no read-out the scan returns the state itself; N states of D channels are N * D such
channels, at the cost of keeping all of them: (B, H, W, K, D, N).
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..lsq import reference as lsq

if TYPE_CHECKING:
    from ..rounding import Rounding


def driven(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None, Tensor | None]:
    """Arguments of the scan that returns the states of another one, D N channels at raster positions.

    Args:
        x: (B, H, W, K, D), or (B, H, W, 1, D) for one map that all directions read.
        others: as in ``ss2d_scan``.

    Returns:
        x, delta, A, B, C, D and delta_bias; the outputs are to be kept apart.
    """
    k, _, n = A.shape
    drive = (x.unsqueeze(-1) * B.unsqueeze(-2)).flatten(-2)  # (B, H, W, K, D N)
    ones = torch.ones((), dtype=drive.dtype, device=drive.device).expand(*drive.shape[:-1], 1)
    bias = None if delta_bias is None else delta_bias.repeat_interleave(n, -1)
    return drive, delta.repeat_interleave(n, -1), A.reshape(k, -1, 1), ones, ones, None, bias


def forward(module: ModuleType, x, delta, A, B, C, D, delta_bias, rounding: Rounding, softplus, paths, merge) -> Tensor:
    """y, as ``rounded_forward`` of a backend.

    Args:
        module: backend whose scan is used.
        others: as in ``reference.forward``.
    """
    dtype, (x, delta, A, B, C, D, delta_bias) = x.dtype, _full(x, delta, A, B, C, D, delta_bias)
    x = x.unsqueeze(3) if x.dim() == 4 else x
    states, _ = module.forward(*driven(x, delta, A, B, delta_bias), softplus, paths, False, False)
    states = lsq.forward(states, rounding.scale, rounding.offset, rounding.qmin, rounding.qmax, None)
    y = _read_out(states, C)
    if D is not None:
        y = y + D * x
    return (y.sum(3) if merge else y).to(dtype)


def _full(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """In the type of the state."""
    work = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return tuple(t if t is None else t.to(work) for t in tensors)


def _read_out(states: Tensor, C: Tensor) -> Tensor:
    """States (B, H, W, K, D N) and C (B, H, W, K, N) -> (B, H, W, K, D)."""
    return (states.unflatten(-1, (-1, C.shape[-1])) @ C.unsqueeze(-1)).squeeze(-1)


def backward(
    module: ModuleType, dy, x, delta, A, B, C, D, delta_bias, rounding: Rounding, softplus, paths
) -> tuple[Tensor | None, ...]:
    """Gradients of x, delta, A, B, C, D, delta_bias, and of scale, offset, lower and upper of the rounding.

    Args:
        module: backend whose scan is used.
        others: as in ``reference.backward``.
    """
    given = (x, delta, A, B, C, D, delta_bias)
    dy, x, delta, A, B, C, D, delta_bias = _full(dy, *given)
    shared = x.dim() == 4
    x = x.unsqueeze(3) if shared else x
    dy = dy.unsqueeze(3) if dy.dim() == 4 else dy  # (B, H, W, 1 or K, D)
    inputs = driven(x, delta, A, B, delta_bias)
    states, kept = module.forward(*inputs, softplus, paths, False, True)
    grid = rounding.scale, rounding.offset, rounding.qmin, rounding.qmax, None
    seen = lsq.forward(states, *grid).unflatten(-1, (-1, C.shape[-1]))
    dC = (seen * dy.unsqueeze(-1)).sum(-2)
    to_seen = (dy.unsqueeze(-1) * C.unsqueeze(-2)).flatten(-2)  # (B, H, W, K, D N)
    to_states, *to_rounding = _through_rounding(to_seen, states, rounding, grid)
    to_drive, ddelta, dA, _, _, _, dbias = module.backward(to_states, *inputs, kept, softplus, paths)
    n = A.shape[-1]
    to_drive = to_drive.unflatten(-1, (-1, n))  # (B, H, W, K, D, N)
    dx = (to_drive * B.unsqueeze(-2)).sum(-1)
    dD = None
    if D is not None:
        dD = (dy * x).expand_as(dx).sum((0, 1, 2))
        dx = dx + D * dy
    grads = (
        dx.sum(3) if shared else dx,
        ddelta.unflatten(-1, (-1, n)).sum(-1),
        dA.reshape(A.shape),
        (to_drive * x.unsqueeze(-1)).sum(-2),
        dC,
        dD,
        None if dbias is None else dbias.unflatten(-1, (-1, n)).sum(-1),
    )
    return *(None if g is None else g.to(t.dtype) for g, t in zip(grads, given, strict=True)), *to_rounding


def _through_rounding(grad: Tensor, states: Tensor, rounding: Rounding, grid: tuple) -> tuple[Tensor | None, ...]:
    """Gradients of the states, and of scale, offset, lower and upper."""
    if rounding.lower is None:
        return *lsq.backward(grad, states, *grid), None, None
    below, above = states == rounding.lower, states == rounding.upper
    direct = torch.where(below | above, grad, 0)
    to_states, to_scale, to_offset = lsq.backward(grad - direct, states, *grid)
    to_bounds = (torch.where(on, grad, 0).sum().reshape(rounding.lower.shape) for on in (below, above))
    return to_states + direct, to_scale, to_offset, *to_bounds
