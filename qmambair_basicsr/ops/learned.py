"""Shared by the operators with a learned step: the step in use, its gradient, and backwards without a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def first_order(backward: Callable) -> Callable:
    """``once_differentiable`` that costs nothing unless a graph of the backward pass is asked for.

    The engine runs a backward pass with gradients off except under ``create_graph=True``; only there something has
    to be guarded.
    """
    guarded = once_differentiable(backward)

    @functools.wraps(backward)
    def choose_guard(ctx, *grads):
        return guarded(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return choose_guard


def step_in_use(scale: Tensor, floor: float | None) -> Tensor:
    """``max(|scale|, floor)``, or ``scale`` as it is where ``floor`` is None."""
    return scale if floor is None else scale.abs().clamp_min_(floor)


def step_gradient(grad: Tensor, scale: Tensor, floor: float | None, grad_scale: float) -> Tensor:
    """Gradient of :func:`step_in_use` carried to ``scale`` and multiplied by ``grad_scale``.

    With a floor it is taken as sign(scale), +1 at 0: a step that an optimizer carried to or past zero can return.
    """
    if grad_scale != 1:
        grad = grad * grad_scale
    return grad if floor is None else torch.where(scale < 0, -grad, grad)
