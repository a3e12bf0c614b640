"""RFA in plain PyTorch, any device: the definition the other backends are held to. Free of autograd.

``w`` has any shape, float32 or float64; ``scale`` and ``offset`` are (1,); ``thresholds`` is (N,) with
N = 2^n, in units of codes. The levels are ``qmin, qmin + 1, ..., qmin + N - 1``. Formulas: README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from .item import RFAItem, backward_one, forward_one

DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")
OUTER_SLOPE = 0.1  # slope of the surrogate below the first and above the last threshold


def is_available() -> tuple[bool, str]:
    """Always: it needs torch only."""
    return True, "plain PyTorch"


def _last_exceeded(v: Tensor, borders: Tensor) -> Tensor:
    """1 + the largest i with ``v > borders[i]``, 0 if there is none; ``borders`` need not be sorted.

    v exceeds some border from i on exactly if it exceeds their minimum, and these suffix minima are sorted.
    """
    suffix_minimum = borders.flip(0).cummin(0).values.flip(0)
    return torch.bucketize(v.contiguous(), suffix_minimum)


def surrogate(v: Tensor, thresholds: Tensor, qmin: int) -> Tensor:
    """The curve whose gradient :func:`backward` gives, differentiable: level ``qmin + i`` at ``thresholds[i]``,
    linear in between, slope 0.1 outside. For sorted thresholds."""
    last = thresholds.numel() - 1
    right = torch.bucketize(v.detach(), thresholds.detach()).clamp(1, last)
    left = right - 1
    fraction = (v - thresholds[left]) / (thresholds[right] - thresholds[left])
    below = OUTER_SLOPE * (v - thresholds[0]) + qmin
    above = OUTER_SLOPE * (v - thresholds[last]) + qmin + last
    curve = torch.where(v > thresholds[last], above, qmin + left + fraction)
    return torch.where(v <= thresholds[0], below, curve)


def codes(w: Tensor, scale: Tensor, offset: Tensor, thresholds: Tensor, qmin: int) -> Tensor:
    """Code of each value in the dtype of ``w``: the level above the last midpoint of thresholds exceeded."""
    v = (w + offset).div_(scale).clamp_(qmin, qmin + thresholds.numel() - 1)
    midpoints = (thresholds[:-1] + thresholds[1:]) / 2
    level = _last_exceeded(v, midpoints).to(w.dtype).add_(qmin)
    return torch.where(v.isnan(), v, level)


def forward(w: Tensor, scale: Tensor, offset: Tensor, thresholds: Tensor, qmin: int) -> Tensor:
    """``(codes - offset / scale) * scale``, in this order (no contraction possible: same bits everywhere)."""
    return codes(w, scale, offset, thresholds, qmin).sub_(offset / scale).mul_(scale)


def backward(
    grad: Tensor, w: Tensor, scale: Tensor, offset: Tensor, thresholds: Tensor, qmin: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to ``w``, ``scale`` (1,), ``offset`` (1,) and ``thresholds`` (N,) of the surrogate.

    The surrogate interpolates the levels linearly between thresholds, with slope 0.1 outside.
    """
    count = thresholds.numel()
    v = (w + offset).div_(scale)
    clamped = v.clamp(qmin, qmin + count - 1)
    inside = clamped == v
    v = clamped
    # bin b: below the first threshold (0), between b-1 and b, above the last (count)
    bins = _last_exceeded(v, thresholds)
    gap = thresholds[1:] - thresholds[:-1]
    outer = thresholds.new_full((1,), OUTER_SLOPE)
    slopes = torch.cat((outer, 1 / gap, outer))
    starts = torch.cat((thresholds[:1], thresholds))
    slope = slopes[bins]

    dw = torch.where(inside, grad * slope, 0)
    doffset = (dw - grad).sum().reshape(1)
    level = codes(w, scale, offset, thresholds, qmin)
    dscale = (grad * level - dw * v).sum().reshape(1)

    # inside bin b, y = q + slope (v - T_left): the share u moves T_right, 1 - u moves T_left
    flat, where = grad.reshape(-1), bins.reshape(-1)
    total = flat.new_zeros(count + 1).index_add_(0, where, flat)
    moved = flat * ((v - starts[bins]) * slope).reshape(-1)
    right = flat.new_zeros(count + 1).index_add_(0, where, moved)[1:-1]
    dthresholds = torch.zeros_like(thresholds)
    dthresholds[0] = -OUTER_SLOPE * total[0]
    dthresholds[-1] = -OUTER_SLOPE * total[-1]
    dthresholds[:-1] -= (total[1:-1] - right) / gap
    dthresholds[1:] -= right / gap
    return dw, dscale, doffset, dthresholds * scale


def forward_items(items: Sequence[RFAItem]) -> list[Tensor]:
    """Every item quantized, one after the other."""
    return [forward_one(sys.modules[__name__], item) for item in items]


def backward_items(
    grads: Sequence[Tensor], items: Sequence[RFAItem], kept: Sequence[Tensor] = ()
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients of w, scale, offset and thresholds of every item."""
    return [backward_one(sys.modules[__name__], grad, item) for grad, item in zip(grads, items, strict=True)]
