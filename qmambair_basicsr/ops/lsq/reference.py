"""Affine fake quantization in plain PyTorch, any device: the definition the other backends are held to.

Both functions are free of autograd. ``x`` is float32 or float64 and of any shape; ``scale`` (> 0) and
``offset`` have one element, or one per index of dimension ``dim`` of ``x``, and the dtype of ``x``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ..limits import limited
from .item import LSQItem, backward_one, forward_one

DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")


def is_available() -> tuple[bool, str]:
    """Always: it needs torch only."""
    return True, "plain PyTorch"


def _spread(parameter: Tensor, x: Tensor, dim: int | None) -> Tensor:
    """View a (1,) or (C,) parameter so that it broadcasts along dimension ``dim`` of ``x``."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[dim] = parameter.numel()
    return parameter.view(shape)


def _collect(grad: Tensor, parameter: Tensor, dim: int | None) -> Tensor:
    """Sum a gradient of the shape of x down to the shape of the parameter."""
    if parameter.numel() == 1:
        return grad.sum().reshape(parameter.shape)
    return grad.movedim(dim, 0).flatten(1).sum(1)


def codes(x: Tensor, scale: Tensor, offset: Tensor | None, qmin: int, qmax: int, dim: int | None) -> Tensor:
    """``clamp(round((x + offset) / scale), qmin, qmax)`` in the dtype of ``x``; NaN stays NaN."""
    v = x / _spread(scale, x, dim) if offset is None else (x + _spread(offset, x, dim)).div_(_spread(scale, x, dim))
    return v.clamp_(qmin, qmax).round_()


def forward(x: Tensor, scale: Tensor, offset: Tensor | None, qmin: int, qmax: int, dim: int | None) -> Tensor:
    """``(codes - zero) * scale`` with ``zero = offset / scale``: every value lies on the grid exactly.

    No two of these operations can be contracted into one rounding (add-divide, subtract-multiply), so any
    backend that follows the order gives the same bits.
    """
    out = codes(x, scale, offset, qmin, qmax, dim)
    if offset is not None:
        out.sub_(_spread(offset / scale, x, dim))
    return out.mul_(_spread(scale, x, dim))


def backward(
    grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, qmin: int, qmax: int, dim: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients to ``x``, ``scale`` and ``offset`` for the upstream gradient ``grad``.

    With v = (x + offset) / scale, I = [qmin <= v <= qmax] and q the code (README.md derives them)::

        dx = grad * I;  dscale = sum grad * (q - v * I);  doffset = sum grad * (I - 1)
    """
    x, spread = limited(x), _spread(scale, x, dim)
    v = x / spread if offset is None else (x + _spread(offset, x, dim)).div_(spread)
    clamped = v.clamp(qmin, qmax)
    inside = clamped == v
    dx = torch.where(inside, grad, 0)
    doffset = None if offset is None else _collect(dx - grad, offset, dim)
    clamped.round_().sub_(v.mul_(inside)).mul_(grad)
    return dx, _collect(clamped, scale, dim), doffset


def forward_items(items: Sequence[LSQItem]) -> tuple[list[Tensor], list[Tensor]]:
    """Every item quantized, one after the other; nothing to keep."""
    return [forward_one(sys.modules[__name__], item) for item in items], []


def backward_items(
    grads: Sequence[Tensor], items: Sequence[LSQItem], kept: Sequence[Tensor] = ()
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Gradients of x, scale and offset of every item."""
    return [backward_one(sys.modules[__name__], grad, item) for grad, item in zip(grads, items, strict=True)]
