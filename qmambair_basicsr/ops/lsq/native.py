"""LSQ on the C++ kernels of ``kernels/cpu``: all items in one call; the meaning is that of ``reference.py``."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from torch import Tensor

from ..layout import empty_for, empty_together
from ..native_library import dense, is_available, run_items
from . import reference
from .item import LSQItem, backward_one, forward_one

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

DEVICES = ("cpu",)
_PACK = struct.Struct("8P3q2d2f").pack  # LsqItem in kernels/cpu/quant.h


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


def _pack(item: LSQItem, rows: tuple[int, int, int], *tensors: Tensor | None) -> bytes:
    floor = -1.0 if item.floor is None else item.floor
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    return _PACK(*addresses, *rows, floor, item.grad_scale, item.qmin, item.qmax)


def forward_items(items: Sequence[LSQItem]) -> tuple[list[Tensor], list[Tensor]]:
    """Every item quantized; x float32 without gaps in memory. Nothing to keep."""
    outs, packed = empty_for([t.x for t in items]), []
    kept = []  # what the call reads has to live until it is over
    for i, item in enumerate(items):
        rows = _rows(item)
        if rows is None:
            outs[i] = forward_one(reference, item)
            continue
        kept.append([None if t is None else dense(t) for t in item[1:3]])
        packed.append(_pack(item, rows, item.x, None, outs[i], None, *kept[-1], None, None))
    run_items("qm_lsq_forward", packed)
    return outs, []


def backward_items(
    grads: Sequence[Tensor], items: Sequence[LSQItem], kept: Sequence[Tensor] = ()
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Gradients of x, scale and offset of every item; gradients lie in memory as their x does."""
    to_x = empty_for([t.x for t in items])
    parameters = [t for item in items for t in (item.scale, item.offset) if t is not None]
    to_parameters = iter(empty_together(parameters))
    found, packed, kept = [], [], []
    for grad, item, dx in zip(grads, items, to_x, strict=True):
        d_scale, d_offset = next(to_parameters), None if item.offset is None else next(to_parameters)
        rows = _rows(item)
        if rows is None:
            found.append(backward_one(reference, grad, item))
            continue
        kept.append([None if t is None else dense(t) for t in item[1:3]])
        packed.append(_pack(item, rows, item.x, grad, None, dx, *kept[-1], d_scale, d_offset))
        found.append((dx, d_scale, d_offset))
    run_items("qm_lsq_backward", packed)
    return found
