"""One tensor of a call of ``rfa``, and how a backend that takes one at a time runs it."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..learned import step_gradient, step_in_use


class RFAItem(NamedTuple):
    """Arguments of ``rfa`` for one tensor."""

    w: Tensor
    scale: Tensor
    offset: Tensor
    thresholds: Tensor
    qmin: int
    floor: float | None = None
    grad_scale: float = 1.0
    min_gap: float | None = None


def forward_one(module: ModuleType, item: RFAItem) -> Tensor:
    """The quantized tensor, by the ``forward`` of ``reference.py`` or one like it."""
    thresholds, _ = order(item.thresholds, item.min_gap)
    return module.forward(item.w, step_in_use(item.scale, item.floor), item.offset, thresholds, item.qmin)


def backward_one(module: ModuleType, grad: Tensor, item: RFAItem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, scale, offset and thresholds."""
    thresholds, source = order(item.thresholds, item.min_gap)
    tensors = (grad, item.w, step_in_use(item.scale, item.floor), item.offset, thresholds)
    dw, d_step, d_offset, d_thresholds = module.backward(*tensors, item.qmin)
    if source is not None:
        d_thresholds = torch.zeros_like(d_thresholds).index_add_(0, source, d_thresholds)
    return dw, step_gradient(d_step, item.scale, item.floor, item.grad_scale), d_offset, d_thresholds


def order(thresholds: Tensor, min_gap: float | None) -> tuple[Tensor, Tensor | None]:
    """Thresholds in use, ``T_i = max over j <= i of (T_j + (i - j) min_gap)``, and the index j that each comes from.

    Args:
        thresholds: (N,).
        min_gap: smallest distance of neighbours; None for the thresholds as they are.

    Returns:
        (N,) sorted with gaps of at least ``min_gap``, and j, (N,) int64; None where every threshold is its own.
    """
    if min_gap is None or _in_order(thresholds, min_gap):
        return thresholds, None
    index = torch.arange(thresholds.numel(), device=thresholds.device)
    source = (thresholds - min_gap * index).cummax(0).indices
    return thresholds[source] + min_gap * (index - source), source


def _in_order(thresholds: Tensor, min_gap: float) -> bool:
    """Whether there is nothing to sort, where asking costs less than sorting: it would hold up a GPU."""
    if thresholds.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    values = thresholds.tolist()
    return all(right - left >= min_gap for left, right in itertools.pairwise(values))
