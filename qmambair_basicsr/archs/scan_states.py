"""The selective scan with its states in the open, for quantizers and observers that have to see them.

A quantizer with one step for all states needs none of this (``ops.ss2d_scan.ss2d_scan_rounded``). Here the states of all
pixels are one tensor, (B, H, W, K, D, N), from the ordinary operator and with its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..ops.ss2d_scan import ss2d_scan
from ..ops.ss2d_scan.open_states import driven


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
    x = x.unsqueeze(-2) if x.dim() == 4 else x  # (B, H, W, 1 or K, D)
    states = ss2d_scan(*driven(x, delta, a, b, delta_bias), directions=directions, order=order, merge=False)
    return states.unflatten(-1, a.shape[1:])


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
