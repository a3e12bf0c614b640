"""The scan on codes in plain PyTorch, token by token: the definition the other backends are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ss2d_scan.reference import to_map, to_sequence
from . import OnGrid, Tables, along, dequantize

DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")


def is_available() -> tuple[bool, str]:
    """Always: it needs torch only."""
    return True, "plain PyTorch"


def build(grid: Tensor, A: Tensor, delta_bias: Tensor | None, softplus: bool, out: Tables) -> None:
    """Fill tables, see ``table_scan.build_tables``; grid is (G, 4)."""
    zero = 2 ** (out.bits - 1)
    codes = torch.arange(-zero, zero, device=grid.device, dtype=grid.dtype)
    step, offset = grid[:, :1], grid[:, 1:2]
    delta = ((codes - offset / step) * step)[:, None, None, :]  # (G, 1, 1, levels)
    dt = delta if delta_bias is None else delta + delta_bias.to(grid.dtype)[None, :, :, None]
    steps = F.softplus(dt, threshold=1e9) if softplus else dt
    out.steps[..., : 2 * zero] = steps
    out.decays.zero_()
    out.decays[..., : 2 * zero, : A.shape[-1]] = torch.expm1(steps[..., None] * A[None, :, :, None].to(grid.dtype))


def rows(delta: OnGrid) -> Tensor:
    """Rows of the tables that a map of step sizes names, int64."""
    zero = 2 ** (delta.bits - 1)
    if delta.data.dtype == torch.uint8:
        return delta.data.long() & (2 * zero - 1)
    step, offset, lowest, highest = along(delta.grid.to(delta.data.dtype), delta.data)
    return ((delta.data + offset) / step).clamp(lowest, highest).round().long() + zero


def scan(
    x: OnGrid,
    delta: OnGrid,
    tables: Tables,
    B: OnGrid,
    C: OnGrid,
    D: Tensor | None,
    directions: list[int] | Tensor,
    merge: bool,
    out: Tensor,
) -> None:
    """Scan into ``out``, see ``table_scan.table_scan``; directions are codes or checked index lists (K, H * W)."""
    kind = out.dtype
    values, inputs, outputs, index = dequantize(x, kind), dequantize(B, kind), dequantize(C, kind), rows(delta)
    height, width = index.shape[1:3]
    channels, state = index.shape[-1], inputs.shape[-1]
    images = torch.arange(len(index), device=index.device)[:, None] % tables.steps.shape[0]
    lanes = torch.arange(channels, device=index.device)
    for k, direction in enumerate(directions):
        own = values if values.dim() == 4 else values[:, :, :, k]
        u, code, b, c = (
            to_sequence(t, direction) for t in (own, index[:, :, :, k], inputs[:, :, :, k], outputs[:, :, :, k])
        )
        h, y = u.new_zeros(len(u), channels, state), torch.empty_like(u)
        for t in range(u.shape[1]):
            decay = tables.decays[images, k, lanes, code[:, t], :state]  # (B, D, N)
            step = tables.steps[images, k, lanes, code[:, t]]
            h = h + (decay * h + (step * u[:, t])[..., None] * b[:, t, None])
            y[:, t] = (h * c[:, t, None]).sum(-1)
        y = y if D is None else y + D[k].to(kind) * u
        y = to_map(y, direction, height, width)
        if not merge:
            out[:, :, :, k] = y
        elif k == 0:
            out.copy_(y)
        else:
            out.add_(y)
