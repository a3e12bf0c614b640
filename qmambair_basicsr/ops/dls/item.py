"""One tensor of a call of ``dls``, and how a backend that takes one at a time runs it."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from ..layout import TO_LAST


class DLSItem(NamedTuple):
    """Arguments of ``dls`` for one tensor, of any shape, whose first dimension is cut into ``rows`` groups."""

    x: Tensor
    w: Tensor
    v: Tensor
    rows: int
    qmin: int
    qmax: int
    cap_share: float
    grad_scale: float = 1.0


def as_rows(t: Tensor, item: DLSItem) -> Tensor:
    """A tensor without gaps, ordered as the item's x, as (rows, values) in the order of memory."""
    values = t.shape[1:].numel() * (t.shape[0] // max(item.rows, 1) or 1)  # of a row; there may be no rows
    return (t if t.is_contiguous() else t.permute(TO_LAST)).view(item.rows, values)


def forward_one(module: ModuleType, item: DLSItem) -> tuple[Tensor, Tensor, Tensor]:
    """The quantized tensor, statistics and grid, by the ``forward`` of ``reference.py`` or one like it."""
    x = as_rows(item.x, item)
    out, stats, grid = module.forward(x, item.w, item.v, item.qmin, item.qmax, item.cap_share)
    return out.as_strided(item.x.shape, item.x.stride()), stats, grid


def backward_one(
    module: ModuleType, grad: Tensor, item: DLSItem, stats: Tensor, grid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w and v."""
    tensors = (as_rows(grad, item), as_rows(item.x, item), item.w, item.v, stats, grid)
    dx, dw, dv = module.backward(*tensors, item.cap_share, item.grad_scale)
    return dx.as_strided(item.x.shape, item.x.stride()), dw, dv
