"""A stand-in for CUDA graphs on a CPU: records PyTorch's operator calls and makes them again, without any Python around them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qmambair_basicsr.models import cuda_graph

ASKS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class RecordedOperations(TorchDispatchMode):
    """Records as a CUDA graph does: operator calls on fixed addresses, with results where they were the first time.

    As there, a recording computes nothing that lasts, asking for a value fails, so does a generator that was made inside
    it, and what Python decided stays decided. Operators that are called through ctypes are invisible: force the reference
    backend.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, list[tuple[int, torch.Tensor]]]] = []
        self.recordings = self.replays = 0

    @contextlib.contextmanager
    def warm_up(self) -> Iterator[None]:
        yield

    def record(self, computation: Callable[[], None]) -> None:
        self.calls, self._before = [], {}
        state = torch.get_rng_state()
        try:
            with self:
                computation()
            self.recordings += 1
        finally:
            torch.set_rng_state(state)
            with torch.no_grad():
                for tensor, value in self._before.values():
                    tensor.copy_(value)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, kept in self.calls:
                results = tree_leaves(function(*args, **kwargs))
                for i, tensor in kept:
                    tensor.copy_(results[i])

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in ASKS:
            raise RuntimeError(f"{function} is not permitted while operations are recorded")
        if kwargs.get("generator") is not None:
            raise RuntimeError("a generator that the recording does not know")
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self._remember(function, args, kwargs)
        result = function(*args, **kwargs)
        owned = {t.untyped_storage().data_ptr() for t in given}
        results = enumerate(tree_leaves(result))
        kept = [
            (i, t.detach()) for i, t in results
            if isinstance(t, torch.Tensor) and t.numel() and t.untyped_storage().data_ptr() not in owned
        ]  # fmt: skip
        self.calls.append((function, args, kwargs, kept))
        return result

    def _remember(self, function, args, kwargs) -> None:
        """Keep what a call is about to overwrite."""
        for argument, value in zip(function._schema.arguments, args, strict=False):
            self._keep(argument, value)
        for argument in function._schema.arguments:
            if argument.name in kwargs:
                self._keep(argument, kwargs[argument.name])

    def _keep(self, argument, value) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                key = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape)
                if key not in self._before:
                    self._before[key] = (tensor.detach(), tensor.detach().clone())


def remembered(monkeypatch) -> list[RecordedOperations]:
    """Recorders of this kind take the place of CUDA graphs on the CPU; every one that is made gets into the list."""
    made: list[RecordedOperations] = []

    class Remembered(RecordedOperations):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            made.append(self)

    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", Remembered)
    return made
