"""LSQ on the C++ kernels of ``kernels/cpu``: all items in one call; the meaning is that of ``reference.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import empty_for, empty_together
from ..native_library import dense, is_available
from ..records import Records
from . import reference
from .item import LSQItem, backward_one, forward_one

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

DEVICES = ("cpu",)
_STRUCT = Records(8, "3q2d2f")  # LsqItem in kernels/cpu/quant.h


def _rows(item: LSQItem) -> tuple[int, int, int] | None:
    """x as (rows, cols) where a row has one step and offset: rows, cols, steps. None where the kernels do not fit.

    That is where rows would be single values, one parameter varies and the other does not, or there is no value.
    """
    x, scale, offset = item[:3]
    groups = scale.numel()
    if x.numel() == 0 or (offset is not None and offset.numel() != groups):
        return None
    if groups == 1:
        return 1, x.numel(), 1
    cols = math.prod(x.shape[item.dim % x.ndim + 1 :])
    return None if cols < 16 else (x.numel() // cols, cols, groups)


def _numbers(item: LSQItem, rows: tuple[int, int, int]) -> tuple:
    """Of its struct, behind the addresses."""
    return *rows, -1.0 if item.floor is None else item.floor, item.grad_scale, item.qmin, item.qmax


def _forward_alone(item: LSQItem) -> Tensor:
    """One tensor quantized, as nearly all activations come: with as little around the kernel as can be."""
    rows = _rows(item)
    if rows is None:
        return forward_one(reference, item)
    x, scale, offset = item[0], dense(item[1]), item[2]
    out = torch.empty_like(x)
    if offset is not None:
        offset = dense(offset)
    _STRUCT.run_one(
        "qm_lsq_forward",
        (x.data_ptr(), 0, out.data_ptr(), 0, scale.data_ptr(), 0 if offset is None else offset.data_ptr(), 0, 0),
        _numbers(item, rows),
    )
    return out


def _backward_alone(grad: Tensor, item: LSQItem) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of one tensor, its step and its offset."""
    rows = _rows(item)
    if rows is None:
        return backward_one(reference, grad, item)
    x, scale, offset = item[0], dense(item[1]), item[2]
    dx, d_scale = torch.empty_like(x), torch.empty_like(scale)
    to = x.data_ptr(), grad.data_ptr(), 0, dx.data_ptr(), scale.data_ptr()
    if offset is None:
        _STRUCT.run_one("qm_lsq_backward", (*to, 0, d_scale.data_ptr(), 0), _numbers(item, rows))
        return dx, d_scale, None
    offset = dense(offset)
    d_offset = torch.empty_like(offset)
    places = *to, offset.data_ptr(), d_scale.data_ptr(), d_offset.data_ptr()
    _STRUCT.run_one("qm_lsq_backward", places, _numbers(item, rows))
    return dx, d_scale, d_offset


def _placed(items: Sequence[LSQItem]) -> tuple[list[int], list[tuple], list[Sequence[Tensor | None]]]:
    """Items that the kernels take, the numbers of their structs, and their x, steps and offsets."""
    rows = [_rows(item) for item in items]
    chosen = [i for i, sizes in enumerate(rows) if sizes is not None]
    given = [items[i] for i in chosen]
    numbers = [_numbers(items[i], rows[i]) for i in chosen]
    offsets = [None if t.offset is None else dense(t.offset) for t in given]
    return chosen, numbers, [[t.x for t in given], [dense(t.scale) for t in given], offsets]


def forward_items(items: Sequence[LSQItem]) -> tuple[list[Tensor], list[Tensor]]:
    """Every item quantized; x float32 without gaps in memory. Nothing to keep."""
    if len(items) == 1:
        return [_forward_alone(items[0])], []
    outs = empty_for([t.x for t in items])
    chosen, numbers, (x, scale, offset) = _placed(items)  # live until the call is over
    if len(chosen) < len(items):
        for i in set(range(len(items))).difference(chosen):
            outs[i] = forward_one(reference, items[i])
    _STRUCT.run("qm_lsq_forward", numbers, x, None, [outs[i] for i in chosen], None, scale, offset, None, None)
    return outs, []


def backward_items(
    grads: Sequence[Tensor], items: Sequence[LSQItem], kept: Sequence[Tensor] = ()
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Gradients of x, scale and offset of every item; gradients lie in memory as their x does."""
    if len(items) == 1:
        return [_backward_alone(grads[0], items[0])]
    to_x = empty_for([t.x for t in items])
    to_parameters = iter(empty_together([t for item in items for t in item[1:3] if t is not None]))
    found = [
        (dx, next(to_parameters), None if item.offset is None else next(to_parameters))
        for dx, item in zip(to_x, items, strict=True)
    ]
    chosen, numbers, (x, scale, offset) = _placed(items)
    if len(chosen) < len(items):
        for i in set(range(len(items))).difference(chosen):
            found[i] = backward_one(reference, grads[i], items[i])
    written = [[found[i][k] for i in chosen] for k in range(3)]
    _STRUCT.run(
        "qm_lsq_backward", numbers, x, [grads[i] for i in chosen], None, written[0], scale, offset, *written[1:]
    )
    return found
