"""Quantized tensors computed again in the backward pass instead of kept between the passes.

A quantizer's backward pass reads its input, and the operation that its result goes to reads the result: a training step in
full precision keeps one of the two. Inside :func:`not_kept` autograd keeps what is needed to quantize the input once more, in
place of results, wherever an operation saves one. The kernels give the same bits each time, so gradients do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_results: ContextVar[_Results | None] = ContextVar("results_not_kept", default=None)


class _Again(NamedTuple):
    """A result, as what it is computed from.

    Attributes:
        backend: module that computed it.
        item: what it computes it from; the first tensor is the quantized one.
    """

    backend: ModuleType
    item: Any

    def result(self) -> Tensor:
        """The result, once more."""
        with torch.no_grad():
            return self.backend.forward_items([self.item])[0][0]


class _Results:
    """Results of the forward pass in progress, by the address of their memory."""

    def __init__(self):
        self._known: dict[int, tuple[StorageWeakRef, _Again]] = {}

    def note(self, backend: ModuleType, items: Sequence[Any], outs: Sequence[Tensor]) -> None:
        """Results that need not be kept."""
        for item, out in zip(items, outs, strict=True):
            storage = out.untyped_storage()
            if storage.nbytes() == out.numel() * out.element_size():  # of its own, not one of many
                again = _Again(backend, type(item)(item[0].detach(), *item[1:]))
                self._known[storage.data_ptr()] = StorageWeakRef(storage), again

    def pack(self, t: Tensor) -> Any:
        """What autograd keeps of a tensor."""
        storage = t.untyped_storage()
        known = self._known.get(storage.data_ptr())
        if known is None or known[0].expired() or known[0].cdata != storage._cdata or t._version:
            return t
        return known[1], t.size(), t.stride(), t.storage_offset()


def _unpack(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    again, *place = kept
    return again.result().as_strided(*place)  # an operation may have kept a view of it


def note(backend: ModuleType, items: Sequence[Any], outs: Sequence[Tensor]) -> None:
    """Tell of results of a backend's ``forward_items``, for a :func:`not_kept` that is in progress."""
    results = _results.get()
    if results is not None:
        results.note(backend, items, outs)


@contextmanager
def not_kept() -> Iterator[None]:
    """Have autograd keep no quantized tensors of operations inside the block."""
    results = _Results()
    token = _results.set(results)
    try:
        with torch.autograd.graph.saved_tensors_hooks(results.pack, _unpack):
            yield
    finally:
        _results.reset(token)
