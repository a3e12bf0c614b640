"""RFA on the C++ kernels of ``kernels/cpu``: all items in one call, one pass over each w each way; the meaning is that of
``reference.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..layout import empty_for, empty_together
from ..native_library import dense, is_available
from ..records import Records
from . import reference
from .item import RFAItem, backward_one, forward_one

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

DEVICES = ("cpu",)
_MAX_LEVELS = 256
_STRUCT = Records(10, "2q3d2f")  # RfaItem in kernels/cpu/quant.h


def _fits(item: RFAItem) -> bool:
    return item.w.numel() > 0 and item.thresholds.numel() <= _MAX_LEVELS


def _numbers(item: RFAItem) -> tuple:
    """Of its struct, behind the addresses."""
    floor, min_gap = item.floor, item.min_gap
    return (
        item.w.numel(),
        item.thresholds.numel(),
        -1.0 if floor is None else floor,
        item.grad_scale,
        -1.0 if min_gap is None else min_gap,
        item.qmin,
        0.0,
    )


def forward_items(items: Sequence[RFAItem]) -> list[Tensor]:
    """Every item quantized; w float32 and contiguous."""
    outs = empty_for([t.w for t in items])
    chosen = [i for i, item in enumerate(items) if _fits(item)]
    if len(chosen) < len(items):
        for i in set(range(len(items))).difference(chosen):
            outs[i] = forward_one(reference, items[i])
    given = [items[i] for i in chosen]
    read = [[dense(t[k]) for t in given] for k in (1, 2, 3)]  # lives until the call is over
    _STRUCT.run(
        "qm_rfa_forward",
        [_numbers(t) for t in given],
        [t.w for t in given],
        None,
        [outs[i] for i in chosen],
        None,
        *read,
    )
    return outs


def backward_items(
    grads: Sequence[Tensor], items: Sequence[RFAItem], kept: Sequence[Tensor] = ()
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients of w, scale, offset and thresholds of every item."""
    to_w = empty_for([t.w for t in items])
    to_parameters = empty_together([t for item in items for t in item[1:4]])
    found = list(zip(to_w, to_parameters[::3], to_parameters[1::3], to_parameters[2::3], strict=True))
    chosen = [i for i, item in enumerate(items) if _fits(item)]
    if len(chosen) < len(items):
        for i in set(range(len(items))).difference(chosen):
            found[i] = backward_one(reference, grads[i], items[i])
    given = [items[i] for i in chosen]
    read = [[dense(t[k]) for t in given] for k in (1, 2, 3)]
    written = [[found[i][k] for i in chosen] for k in range(4)]
    _STRUCT.run(
        "qm_rfa_backward", [_numbers(t) for t in given], [t.w for t in given], [grads[i] for i in chosen], None,
        written[0], *read, *written[1:],
    )  # fmt: skip
    return found
