"""DLS in plain PyTorch, any device: the definition the other backends are held to. Free of autograd.

``x`` is (G, M), float32 or float64: G groups with statistics of their own (samples, or one for the whole
tensor) of M values. ``w`` and ``v`` are (4,), in the order mean, std, min, max. README.md derives the gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ..limits import limited
from .item import DLSItem, backward_each, forward_each

DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")
RELATIVE_FLOOR = 2.0**-20  # smallest step, relative to the largest magnitude of the group
ABSOLUTE_FLOOR = 1e-12


def is_available() -> tuple[bool, str]:
    """Always: it needs torch only."""
    return True, "plain PyTorch"


def statistics(x: Tensor) -> Tensor:
    """(G, 4): mean, unbiased standard deviation (0 for a single value), minimum and maximum of each row."""
    x = limited(x)
    low, high = x.aminmax(dim=1)
    if x.shape[1] == 1:
        return torch.stack((low, low - low, low, high), dim=1)
    var, mean = torch.var_mean(x, dim=1)
    # the bound holds for any data; in force only when the squares overflow
    std = torch.minimum(var.sqrt(), high - low)
    return torch.stack((mean, std, low, high), dim=1)


def grid(stats: Tensor, w: Tensor, v: Tensor, qmin: int, qmax: int, cap_share: float) -> Tensor:
    """(G, 4): step, offset, lowest and highest code in use.

    offset = v . stats; step = softmin(|w . shifted stats|, cap_share * (max - min)) with
    softmin(p, c) = (p^-4 + c^-4)^(-1/4). Codes whose value has a sign that the data does not have are left
    out: non-negative data cannot become negative, nor a decay rate positive.
    """
    low, high = stats[:, 2], stats[:, 3]
    offset = stats @ v
    p, c, _ = _step_and_cap(stats, offset, w, cap_share)
    c = c.detach()
    small, large = torch.minimum(p, c), torch.maximum(p, c)
    step = small * (1 + (small / large).pow(4)).pow(-0.25)
    zero = (offset / step).detach().clamp(qmin, qmax)
    lowest = torch.where(low >= 0, zero.ceil(), float(qmin))
    highest = torch.where(high <= 0, zero.floor(), float(qmax))
    return torch.stack((step, offset, lowest, highest), dim=1)


def _step_and_cap(stats: Tensor, offset: Tensor, w: Tensor, cap_share: float) -> tuple[Tensor, Tensor, Tensor]:
    """|w . shifted stats| and the cap, both floored, and the signed dot product before the absolute value."""
    mean, std, low, high = stats.unbind(1)
    floor = torch.maximum(low.abs(), high.abs()) * RELATIVE_FLOOR + ABSOLUTE_FLOOR
    raw = w[0] * (mean + offset).abs() + w[1] * std + w[2] * (low + offset) + w[3] * (high + offset)
    return torch.maximum(raw.abs(), floor), torch.maximum((high - low) * cap_share, floor), raw


def codes(x: Tensor, grid: Tensor) -> Tensor:
    """``clamp(round((x + offset) / step), lowest, highest)`` in the dtype of ``x``; NaN stays NaN."""
    step, offset, lowest, highest = grid.unsqueeze(2).unbind(1)
    return (x + offset).div_(step).clamp_(lowest, highest).round_()


def forward(x: Tensor, w: Tensor, v: Tensor, qmin: int, qmax: int, cap_share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Quantized ``x``, its statistics (G, 4) and the grid in use (G, 4); see :func:`grid`.

    The value is ``(codes - offset / step) * step`` in this order: no two operations can be contracted into one
    rounding, so a backend with the same grid gives the same bits.
    """
    stats = statistics(x)
    used = grid(stats, w, v, qmin, qmax, cap_share)
    step, offset = used[:, :1], used[:, 1:2]
    return codes(x, used).sub_(offset / step).mul_(step), stats, used


def backward(
    grad: Tensor, x: Tensor, w: Tensor, v: Tensor, stats: Tensor, used: Tensor, cap_share: float, grad_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x`` (G, M), ``w`` (4,) and ``v`` (4,) for the upstream gradient ``grad`` (G, M).

    Args:
        stats, used: statistics and grid that :func:`forward` returned.
        grad_scale: factor on the gradient that reaches the step (LSQ's 1 / sqrt(numel * Q_P)).
    """
    x = limited(x)
    step, offset, lowest, highest = used.unsqueeze(2).unbind(1)
    scaled = (x + offset).div_(step)
    code = scaled.clamp(lowest, highest)
    inside = code == scaled
    dx = torch.where(inside, grad, 0)
    d_offset = (dx - grad).sum(1)
    d_step = code.round_().sub_(scaled.mul_(inside)).mul_(grad).sum(1)

    d_stats, dw, dv = grid_backward(d_step * grad_scale, d_offset, stats, used, w, v, cap_share)
    mean, std, low, high = stats.unsqueeze(2).unbind(1)
    d_mean, d_std, d_low, d_high = d_stats.unsqueeze(2).unbind(1)
    count = x.shape[1]
    # at std = 0 every value equals the mean, and the gradient is taken as 0
    slope = torch.where(std == 0, 0, d_std / (std * max(count - 1, 1)))
    dx.add_(d_mean / count - slope * mean).addcmul_(x, slope)
    for d_extreme, extreme in ((d_low, low), (d_high, high)):
        reached = x == extreme  # several equal extremes share the gradient
        dx.add_(reached * (d_extreme / reached.sum(1, keepdim=True)))
    return dx, dw, dv


def grid_backward(
    d_step: Tensor, d_offset: Tensor, stats: Tensor, used: Tensor, w: Tensor, v: Tensor, cap_share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of step and offset, (G,) each, carried back to the statistics (G, 4), ``w`` and ``v``.

    The cap and the floor are constants; the floor does not stop the gradient.
    """
    mean, std, low, high = stats.unbind(1)
    step, offset = used[:, 0], used[:, 1]
    p, _, raw = _step_and_cap(stats, offset, w, cap_share)
    d_raw = d_step * (step / p).pow(5)
    d_raw = torch.where(raw < 0, -d_raw, d_raw)
    shifted_mean = mean + offset
    dw = d_raw @ torch.stack((shifted_mean.abs(), std, low + offset, high + offset), dim=1)
    d_shifted_mean = d_raw * w[0] * shifted_mean.sign()
    d_offset = d_offset + d_shifted_mean + d_raw * (w[2] + w[3])
    direct = torch.stack((d_shifted_mean, d_raw * w[1], d_raw * w[2], d_raw * w[3]), dim=1)
    return direct + d_offset[:, None] * v, dw, d_offset @ stats


def forward_items(items: Sequence[DLSItem]) -> tuple[list[Tensor], list[Tensor]]:
    """See ``item.forward_each``."""
    return forward_each(sys.modules[__name__], items)


def backward_items(
    grads: Sequence[Tensor], items: Sequence[DLSItem], kept: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See ``item.backward_each``."""
    return backward_each(sys.modules[__name__], grads, items, kept)
