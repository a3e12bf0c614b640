"""DLS on the C++ kernels of ``kernels/cpu``: all items in one call, two passes over each x each way; the grids between the
passes are worked out in C too. The meaning is that of ``reference.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import empty_for
from ..native_library import dense, is_available, run_items
from . import reference
from .item import DLSItem

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

DEVICES = ("cpu",)
_PACK = struct.Struct("10P2q2d2f").pack  # DlsItem in kernels/cpu/quant.h


def _pack(item: DLSItem, *tensors: Tensor | None) -> bytes:
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    sizes = item.rows, item.x.numel() // item.rows
    return _PACK(*addresses, *sizes, item.cap_share, item.grad_scale, item.qmin, item.qmax)


def forward_items(items: Sequence[DLSItem]) -> tuple[list[Tensor], list[Tensor]]:
    """See ``reference.forward_items``; x float32 without gaps in memory."""
    if any(item.x.numel() == 0 for item in items):
        return reference.forward_items(items)
    outs = empty_for([t.x for t in items])
    rows = [t.rows for t in items for _ in range(2)]
    kept = torch.empty(sum(rows), 4).split(rows)  # statistics and grid of each item
    weights = [(dense(t.w), dense(t.v)) for t in items]  # what the call reads has to live until it is over
    packed = [
        _pack(item, item.x, None, out, None, *weight, *pair, None, None)
        for item, out, weight, pair in zip(items, outs, weights, zip(kept[::2], kept[1::2], strict=True), strict=True)
    ]
    run_items("qm_dls_forward", packed)
    return outs, list(kept)


def backward_items(
    grads: Sequence[Tensor], items: Sequence[DLSItem], kept: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See ``reference.backward_items``; gradients lie in memory as their x does."""
    if any(item.x.numel() == 0 for item in items):
        return reference.backward_items(grads, items, kept)
    to_x = empty_for([t.x for t in items])
    weights = torch.empty(2 * len(items), 4).unbind(0)
    read, found, packed = [], [], []
    for i, (grad, item, dx) in enumerate(zip(grads, items, to_x, strict=True)):
        read.append([dense(t) for t in (item.w, item.v, *kept[2 * i : 2 * i + 2])])
        dw, dv = weights[2 * i : 2 * i + 2]
        packed.append(_pack(item, item.x, grad, None, dx, *read[-1], dw, dv))
        found.append((dx, dw, dv))
    run_items("qm_dls_backward", packed)
    return found
