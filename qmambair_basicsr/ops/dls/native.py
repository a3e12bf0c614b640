"""DLS on the C++ kernels of ``kernels/cpu``: all items in one call, two passes over each x each way; the grids between the
passes are worked out in C too. The meaning is that of ``reference.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import empty_for
from ..native_library import dense, is_available
from ..records import Records
from . import reference
from .item import DLSItem

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

DEVICES = ("cpu",)
_STRUCT = Records(10, "2q2d2f")  # DlsItem in kernels/cpu/quant.h


def _numbers(item: DLSItem) -> tuple:
    """Of its struct, behind the addresses."""
    return item.rows, item.x.numel() // item.rows, item.cap_share, item.grad_scale, item.qmin, item.qmax


def forward_items(items: Sequence[DLSItem]) -> tuple[list[Tensor], list[Tensor]]:
    """See ``reference.forward_items``; x float32 without gaps in memory."""
    x = [t.x for t in items]
    if any(t.numel() == 0 for t in x):
        return reference.forward_items(items)
    outs = empty_for(x)
    rows = [t.rows for t in items for _ in range(2)]
    kept = list(torch.empty(sum(rows), 4).split(rows))  # statistics and grid of each item
    w, v = [dense(t.w) for t in items], [dense(t.v) for t in items]  # live until the call is over
    _STRUCT.run(
        "qm_dls_forward", [_numbers(t) for t in items], x, None, outs, None, w, v, kept[::2], kept[1::2], None, None
    )
    return outs, kept


def backward_items(
    grads: Sequence[Tensor], items: Sequence[DLSItem], kept: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See ``reference.backward_items``; gradients lie in memory as their x does."""
    x = [t.x for t in items]
    if any(t.numel() == 0 for t in x):
        return reference.backward_items(grads, items, kept)
    to_x = empty_for(x)
    dw, dv = torch.empty(2, len(items), 4).unbind()
    to_w, to_v = dw.unbind(), dv.unbind()
    w, v, stats, grids = ([dense(t) for t in column] for column in (
        [t.w for t in items], [t.v for t in items], kept[::2], kept[1::2]
    ))  # fmt: skip
    _STRUCT.run("qm_dls_backward", [_numbers(t) for t in items], x, grads, None, to_x, w, v, stats, grids, to_w, to_v)
    return list(zip(to_x, to_w, to_v, strict=True))
