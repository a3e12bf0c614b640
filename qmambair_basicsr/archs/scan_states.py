"""The selective scan with its states in the open, for quantizing them.

With one state for each channel and no read-out the scan returns the state itself; N states of D channels are N * D such
channels. So the states come from the ordinary operator, with its gradients, at the cost of keeping all of them:
(B, H, W, K, D, N).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops.ss2d_scan import ss2d_scan


def scan_states(
    x: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    delta_bias: Tensor,
    directions: Sequence[str] | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """States of the scan behind each pixel.

    Args:
        x, delta, a, b, delta_bias, directions, order: as in ``ops.ss2d_scan``; softplus is applied to delta + delta_bias.

    Returns:
        (B, H, W, K, D, N), at raster positions.
    """
    k, d, n = a.shape
    x = x.unsqueeze(-2) if x.dim() == 4 else x  # (B, H, W, 1 or K, D)
    driven = (x.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)  # (B, H, W, K, D N)
    ones = torch.ones((), dtype=driven.dtype, device=driven.device).expand(*driven.shape[:-1], 1)
    states = ss2d_scan(
        driven,
        delta.repeat_interleave(n, -1),
        a.reshape(k, d * n, 1),
        ones,
        ones,
        None,
        delta_bias.repeat_interleave(n, -1),
        delta_softplus=True,
        directions=directions,
        order=order,
        merge=False,
    )
    return states.unflatten(-1, (d, n))


def scan_with_states(
    x: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    delta_bias: Tensor,
    change: Callable[[Tensor], Tensor],
    merge: bool = True,
    directions: Sequence[str] | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """``y_t = C_t . change(h_t) + D x_t``: only the read-out sees what became of a state, the recurrence does not.

    Args:
        c: (B, H, W, K, N).
        skip: D of the scan, (K, D).
        change: (B, H, W, K, D, N) -> the same shape, such as a quantizer.
        merge: sum the directions.
        others: as in :func:`scan_states`.

    Returns:
        (B, H, W, D), or (B, H, W, K, D) unless merged.
    """
    states = change(scan_states(x, delta, a, b, delta_bias, directions, order))
    x = x.unsqueeze(-2) if x.dim() == 4 else x
    y = (states @ c.unsqueeze(-1)).squeeze(-1) + skip * x
    return y.sum(-2) if merge else y
