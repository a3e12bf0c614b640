"""RFA on the C++ kernels of ``kernels/cpu``: all items in one call, one pass over each w each way; the meaning is that of
``reference.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from torch import Tensor

from ..layout import empty_for, empty_together
from ..native_library import dense, is_available, run_items
from . import reference
from .item import RFAItem, backward_one, forward_one

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

DEVICES = ("cpu",)
_MAX_LEVELS = 256
_PACK = struct.Struct("10P2q3d2f").pack  # RfaItem in kernels/cpu/quant.h


def _fits(item: RFAItem) -> bool:
    return item.w.numel() > 0 and item.thresholds.numel() <= _MAX_LEVELS


def _pack(item: RFAItem, *tensors: Tensor | None) -> bytes:
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    floor, min_gap = (-1.0 if t is None else t for t in (item.floor, item.min_gap))
    sizes = item.w.numel(), item.thresholds.numel()
    return _PACK(*addresses, *sizes, floor, item.grad_scale, min_gap, item.qmin, 0.0)


def forward_items(items: Sequence[RFAItem]) -> list[Tensor]:
    """Every item quantized; w float32 and contiguous."""
    outs = empty_for([t.w for t in items])
    read, packed = [], []  # what the call reads has to live until it is over
    for i, item in enumerate(items):
        if not _fits(item):
            outs[i] = forward_one(reference, item)
            continue
        read.append([dense(t) for t in item[1:4]])
        packed.append(_pack(item, item.w, None, outs[i], None, *read[-1], None, None, None))
    run_items("qm_rfa_forward", packed)
    return outs


def backward_items(
    grads: Sequence[Tensor], items: Sequence[RFAItem], kept: Sequence[Tensor] = ()
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients of w, scale, offset and thresholds of every item."""
    to_w = empty_for([t.w for t in items])
    to_parameters = empty_together([t for item in items for t in item[1:4]])
    read, packed, found = [], [], []
    for i, (grad, item, dw) in enumerate(zip(grads, items, to_w, strict=True)):
        if not _fits(item):
            found.append(backward_one(reference, grad, item))
            continue
        read.append([dense(t) for t in item[1:4]])
        gradients = to_parameters[3 * i : 3 * i + 3]
        packed.append(_pack(item, item.w, grad, None, dw, *read[-1], *gradients))
        found.append((dw, *gradients))
    run_items("qm_rfa_backward", packed)
    return found
