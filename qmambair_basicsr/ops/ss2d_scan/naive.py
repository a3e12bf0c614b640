"""The selective scan as the papers write it (Mamba, eq. 2-4; VMamba, sec. 4.2): every product in full, then a loop over time.

It is what the other implementations are tested against and timed beside, and what "the plain recurrence" means in
``kernels/bench``; nothing in the package runs it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .orders import DIRECTIONS, named_order


def recurrence(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True):
    """K scans of sequences; every argument in the order of its scan.

    Args:
        u, delta: (B, K, D, L).
        A: (K, D, N).
        B, C: (B, K, N, L).
        D, delta_bias: (K, D) or None.
        delta_softplus: dt = softplus(delta + delta_bias) instead of the sum itself.

    Returns:
        y (B, K, D, L) and the last state (B, K, D, N). Autograd differentiates both.
    """
    dt = delta if delta_bias is None else delta + delta_bias[..., None]
    dt = F.softplus(dt) if delta_softplus else dt
    decay = torch.exp(torch.einsum("bkdl,kdn->bkdln", dt, A))
    entry = torch.einsum("bkdl,bknl,bkdl->bkdln", dt, B, u)
    h, y = torch.zeros_like(entry[:, :, :, 0]), []
    for t in range(u.shape[-1]):
        h = decay[:, :, :, t] * h + entry[:, :, :, t]
        y.append(torch.einsum("bkdn,bkn->bkd", h, C[..., t]))
    y = torch.stack(y, -1)
    return (y if D is None else y + D[..., None] * u), h


def naive_scan(
    x, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True, directions=None, *, order=None, merge=True
):
    """``ss2d_scan``: its arguments, its result; only the precision is that of the inputs throughout."""
    height, width = x.shape[1:3]
    if order is None:
        order = named_order(directions or DIRECTIONS, height, width, x.device)
    order = order.long()[:, None]  # (K, 1, L)
    x = x if x.dim() == 5 else x[:, :, :, None].expand(-1, -1, -1, order.shape[0], -1)
    maps = [t.flatten(1, 2).permute(0, 2, 3, 1) for t in (x, delta, B, C)]  # (B, K, C, L), by raster position
    u, dt, b, c = (torch.take_along_dim(t, order[None], 3) for t in maps)
    y, _ = recurrence(u, dt, A, b, c, D, delta_bias, delta_softplus)
    y = torch.take_along_dim(y, order.argsort(2)[None], 3)
    y = y.permute(0, 3, 1, 2).unflatten(1, (height, width))  # (B, H, W, K, D)
    return y.sum(3) if merge else y
