"""Several tensors quantized in one operator call for each kind of operator, with the bits of one after the other."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.dls import DLSItem, dls_together
from ..ops.lsq import LSQItem, lsq_together
from ..ops.rfa import RFAItem, rfa_together
from .base import Quantizer

OPERATORS = {LSQItem: lsq_together, DLSItem: dls_together, RFAItem: rfa_together}


def quantize_together(pairs: Sequence[tuple[Quantizer, Tensor]]) -> list[Tensor]:
    """``[quantizer(x) for quantizer, x in pairs]`` in as few operator calls as possible.

    A quantizer is called by itself where there is more to do than its operator does: while it calibrates or before it is
    initialised, where somebody watches it with a hook, or where its class has its own way.
    """
    results: list[Tensor | None] = [None] * len(pairs)
    calls: dict[tuple, list[tuple[int, LSQItem | DLSItem | RFAItem]]] = {}
    for i, (quantizer, x) in enumerate(pairs):
        item = item_of(quantizer, x)
        if item is None:
            results[i] = quantizer(x)
        else:
            calls.setdefault((type(item), x.dtype == torch.float64, x.device), []).append((i, item))
    for (kind, *_), members in calls.items():
        for (i, _), out in zip(members, OPERATORS[kind]([item for _, item in members]), strict=True):
            results[i] = out
    return results


def item_of(quantizer: nn.Module, x: Tensor) -> LSQItem | DLSItem | RFAItem | None:
    """The operator call that is all of ``quantizer(x)``; None where that is not one."""
    if not _plain(type(quantizer)) or quantizer.calibrating or not quantizer.is_initialized():
        return None
    if "forward" in vars(quantizer):  # calibration.collect lets tensors pass unquantized
        return None
    if quantizer._forward_hooks or quantizer._forward_pre_hooks or nn.modules.module._has_any_global_hook():
        return None
    return quantizer.item(x)


@functools.cache
def _plain(kind: type) -> bool:
    """Whether ``item`` of a class was written with its ``quantize``, and nothing was put around them."""
    if (
        not issubclass(kind, Quantizer)
        or kind.forward is not Quantizer.forward
        or kind.__call__ is not nn.Module.__call__
    ):
        return False
    order = kind.__mro__
    defined = {name: next(i for i, c in enumerate(order) if name in vars(c)) for name in ("item", "quantize")}
    return defined["item"] <= defined["quantize"]
