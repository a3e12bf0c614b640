"""Several tensors quantized in one operator call for each kind of operator, with the bits of one after the other."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.dls import DLSItem, dls_together
from ..ops.lsq import LSQItem, lsq_together
from ..ops.rfa import RFAItem, rfa_together
from ..ops.rounding import Rounding
from .base import Quantizer
from .identity import Identity

OPERATORS = {LSQItem: lsq_together, DLSItem: dls_together, RFAItem: rfa_together}


def quantize_together(pairs: Sequence[tuple[Quantizer, Tensor]]) -> list[Tensor]:
    """``[quantizer(x) for quantizer, x in pairs]`` in as few operator calls as possible.

    A quantizer is called by itself where there is more to do than its operator does: while it calibrates or before it is
    initialised, where somebody watches it with a hook, or where its class has its own way.
    """
    items = [item_of(quantizer, x) for quantizer, x in pairs]
    results = iter(run_items([item for item in items if item is not None]))
    return [quantizer(x) if item is None else next(results) for item, (quantizer, x) in zip(items, pairs, strict=True)]


def run_items(items: Sequence[LSQItem | DLSItem | RFAItem]) -> list[Tensor]:
    """The results of operator calls, of any kinds, in as few calls as possible."""
    results: list[Tensor | None] = [None] * len(items)
    calls: dict[tuple, list[int]] = {}
    for i, item in enumerate(items):
        calls.setdefault((type(item), item[0].dtype == torch.float64, item[0].device), []).append(i)
    for (kind, *_), members in calls.items():
        for i, out in zip(members, OPERATORS[kind]([items[i] for i in members]), strict=True):
            results[i] = out
    return results


def item_of(quantizer: nn.Module, x: Tensor) -> LSQItem | DLSItem | RFAItem | None:
    """The operator call that is all of ``quantizer(x)``; None where that is not one."""
    return quantizer.item(x) if _only_quantizes(quantizer, "item") else None


def rounding_of(quantizer: nn.Module) -> Rounding | None:
    """The rounding that is all of calling a quantizer with any tensor; None where that is more."""
    return quantizer.rounding() if _only_quantizes(quantizer, "rounding") else None


def passes(quantizer: nn.Module) -> bool:
    """Whether calling a quantizer with a tensor returns it and does nothing else: full precision, and nobody watches."""
    return type(quantizer) is Identity and "forward" not in vars(quantizer) and not is_watched(quantizer)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody looks at what a module is given or returns."""
    watched = module._forward_hooks or module._forward_pre_hooks
    return bool(watched) or nn.modules.module._has_any_global_hook()


def _only_quantizes(quantizer: nn.Module, description: str) -> bool:
    """Whether calling a quantizer is no more than its :meth:`quantize`, of which ``description`` is a method."""
    if not _plain(type(quantizer), description) or quantizer.calibrating:
        return False
    if "forward" in vars(quantizer):  # calibration.collect lets tensors pass unquantized
        return False
    # last: a network on the meta device, which is watched, has no answer
    return not is_watched(quantizer) and quantizer.is_initialized()


@functools.cache
def _plain(kind: type, description: str) -> bool:
    """Whether the method ``item`` or ``rounding`` of a class was written with its ``quantize``, and nothing was put around them."""
    if (
        not issubclass(kind, Quantizer)
        or kind.forward is not Quantizer.forward
        or kind.__call__ is not nn.Module.__call__
    ):
        return False
    order = kind.__mro__
    defined = {name: next(i for i, c in enumerate(order) if name in vars(c)) for name in (description, "quantize")}
    return defined[description] <= defined["quantize"]
