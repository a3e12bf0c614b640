"""Selective scan of sequences with mamba_ssm's signature and layouts (Mamba, algorithm 2).

A thin layer over the core of ``ss2d_scan``: sequences are maps of height 1 and the groups of B and C are directions
that all run forwards, each with its own channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..backend import BackendError, export_target
from ..ss2d_scan import scan

_ROW = 0  # direction code of a forward scan


def _grouped(t: torch.Tensor, name: str, batch: int, channels: int, length: int) -> torch.Tensor:
    """B or C in any of mamba_ssm's layouts as (B, G, N, L)."""
    if t.dim() == 2:  # constant in time, one row per channel
        return t[None, :, :, None].expand(batch, -1, -1, length)
    grouped = t.unsqueeze(1) if t.dim() == 3 else t
    if grouped.dim() != 4 or grouped.shape[0] != batch or grouped.shape[3] != length or channels % grouped.shape[1]:
        raise ValueError(
            f"selective_scan: {name} must be (B, N, L), (B, G, N, L) with G dividing D, or (D, N), for B = {batch}, "
            f"D = {channels}, L = {length}; got {tuple(t.shape)}"
        )
    return grouped


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Selective scan along the last dimension.

    ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, ``y_t = C_t . h_t + D u_t``, times ``silu(z_t)`` when z is given;
    dt = delta + delta_bias, through softplus when asked. The state is float32 (float64 for float64 inputs).

    Args:
        u, delta, z: (B, D, L).
        A: (D, N), real and negative.
        B, C: (B, N, L), or (B, G, N, L) with G groups of D / G channels, or (D, N), constant in time. The constant
            form is for completeness: its gradient costs memory in proportion to B D N L.
        D, delta_bias: (D,).
        delta_softplus: apply softplus to delta + delta_bias.
        return_last_state: also return the final state, (B, D, N), without gradient (as mamba_ssm does).

    Returns:
        (B, D, L) in u's dtype, or that and the last state.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: complex A, B or C.
        BackendError: the last state of a network that is exported.
    """
    if return_last_state and export_target() is not None:
        raise BackendError("selective_scan: the last state has no ONNX form")
    if u.dim() != 3 or A.dim() != 2 or A.shape[0] != u.shape[1]:
        raise ValueError(f"selective_scan: u must be (B, D, L) and A (D, N), got {tuple(u.shape)} and {tuple(A.shape)}")
    batch, channels, length = u.shape
    b, c = (_grouped(t, name, batch, channels, length) for t, name in ((B, "B"), (C, "C")))
    groups = max(b.shape[1], c.shape[1])
    b, c = (t.repeat_interleave(groups // t.shape[1], 1) if t.shape[1] != groups else t for t in (b, c))
    per_group = channels // groups

    def tokens(t):  # (B, D, L) -> (B, 1, L, G, D / G)
        return t.transpose(1, 2).unflatten(2, (groups, per_group)).unsqueeze(1)

    def weights(t):  # (D, ...) -> (G, D / G, ...)
        return None if t is None else t.unflatten(0, (groups, per_group))

    b, c = (t.permute(0, 3, 1, 2).unsqueeze(1) for t in (b, c))  # (B, 1, L, G, N)
    y, states = scan(
        tokens(u),
        tokens(delta),
        weights(A),
        b,
        c,
        weights(D),
        weights(delta_bias),
        delta_softplus,
        [_ROW] * groups,
        merge=False,
    )
    y = y.squeeze(1).flatten(2).transpose(1, 2)  # (B, D, L)
    if z is not None:
        y = y * F.silu(z)
    if not return_last_state:
        return y
    return y, states[:, :, -1].detach().transpose(2, 3).flatten(1, 2)  # (B, G, N, D / G) -> (B, D, N)
