"""One tensor of a call of ``dls``, and how a backend that takes one at a time runs it."""

from __future__ import annotations

from collections.abc import Sequence
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


def forward_each(module: ModuleType, items: Sequence[DLSItem]) -> tuple[list[Tensor], list[Tensor]]:
    """Every item quantized, and its statistics and grid, (rows, 4) each: those of the first item, of the second ..."""
    results = [forward_one(module, item) for item in items]
    return [out for out, *_ in results], [t for _, *kept in results for t in kept]


def backward_each(
    module: ModuleType, grads: Sequence[Tensor], items: Sequence[DLSItem], kept: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Gradients of x, w and v of every item; ``kept`` as :func:`forward_each` gave it."""
    pairs = zip(kept[::2], kept[1::2], strict=True)
    return [backward_one(module, grad, item, *pair) for grad, item, pair in zip(grads, items, pairs, strict=True)]
