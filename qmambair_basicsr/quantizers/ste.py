"""Straight-through and other surrogate gradients: the only ones of the package.

Each is an ``autograd.Function`` whose forward returns the exact value. The usual detach trick,
``(round(x) - x).detach() + x``, returns the value plus round-off, so its output is not on the grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.equality import any_equal
from ..ops.learned import step_gradient, step_in_use


class _Snap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, curve: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _SoftRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        whole = torch.floor(x)
        return torch.tanh(x - whole - 0.5).div_(2 * math.tanh(0.5)).add_(0.5).add_(whole)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        fraction = x - torch.floor(x)
        return grad * (1 - torch.tanh(fraction - 0.5).square()) / (2 * math.tanh(0.5))


class _ScaleGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class _Positive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, floor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.floor = floor
        return step_in_use(x, floor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return step_gradient(grad, x, ctx.floor, 1), None


def asking_is_free(x: Tensor) -> bool:
    """Whether Python may look at values: that would hold up a GPU, and no recording may do so."""
    return x.device.type == "cpu"


class _OnBounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, lower: Tensor, upper: Tensor, dim: int | None) -> Tensor:
        ctx.save_for_backward(x, lower, upper)
        ctx.dim = dim
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, lower, upper = ctx.saved_tensors
        shape = [1] * x.ndim
        if ctx.dim is not None:
            shape[ctx.dim] = -1
        asked = ctx.dim is None and asking_is_free(x)
        if asked and not any_equal(x, lower, upper):
            return grad, None, None, None, None
        below, above = x == lower.view(shape), x == upper.view(shape)
        on = below | above
        if not asked and asking_is_free(on) and not bool(on.any()):
            return grad, None, None, None, None
        direct = torch.where(on, grad, 0.0)

        def shared(mask: Tensor) -> Tensor:
            chosen = torch.where(mask, grad, 0.0)
            return (chosen.sum() if ctx.dim is None else chosen.movedim(ctx.dim, 0).flatten(1).sum(1)).view(lower.shape)

        return grad - direct, direct, shared(below), shared(above), None


def on_bounds(y: Tensor, x: Tensor, lower: Tensor, upper: Tensor, dim: int | None = None) -> Tensor:
    """``y``, the quantized ``x``; where x lies exactly on a bound its gradient reaches both x and the bound.

    2DQuant's and SPR2Q's releases clip with ``<=`` and ``>=``, so such elements count as inside and as clipped.

    Args:
        y: from a quantizer of x between the bounds; gets no gradient at those elements.
        x: what was quantized.
        lower, upper: (1,), or (C,) along ``dim``.
        dim: see there.
    """
    return _OnBounds.apply(y, x, lower, upper, dim)


def snap(curve: Tensor, value: Tensor) -> Tensor:
    """``value``, exactly, with the gradient of ``curve``."""
    return _Snap.apply(curve, value)


def soft_round(x: Tensor) -> Tensor:
    """Soft rounding ``floor(v) + 1/2 + tanh(f - 1/2) / (2 tanh(1/2))`` with ``f = v - floor(v)`` (QuantSR, RLQ).

    Continuous with continuous slope: 0.851 at integers, 1.082 half-way between two. Rounding its value gives
    the rounding of ``x``.
    """
    return _SoftRound.apply(x)


def scale_grad(x: Tensor, factor: Tensor | float) -> Tensor:
    """Return ``x`` unchanged with its gradient multiplied by ``factor`` (LSQ, eq. 4 and section 2.2).

    ``factor`` is a number or a tensor that broadcasts to ``x`` and needs no gradient.
    """
    return _ScaleGrad.apply(x, factor)


def positive(x: Tensor, floor: float) -> Tensor:
    """``max(|x|, floor)`` with gradient ``sign(x)`` everywhere (``+1`` at 0).

    A learned step size that an optimizer step carried to or past zero stays usable, and the floor does
    not cut its gradient off.
    """
    return _Positive.apply(x, floor)


def learned_step(scale: Tensor, floor: float | None, factor: Tensor | float) -> Tensor:
    """Step in use of a learned ``scale``: :func:`positive` unless ``floor`` is None, its gradient times ``factor``.

    What the operators ``lsq`` and ``rfa`` work out themselves from ``scale``, ``floor`` and ``grad_scale``, attached
    to the graph.
    """
    return scale_grad(scale if floor is None else positive(scale, floor), factor)
