"""The Python of the Triton quantizers on a machine without a GPU: everything but the kernels themselves."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest import mock

from qmambair_basicsr.ops import backend

OPS = ("lsq", "dls", "rfa")


class _Nothing:
    """Stands for modules of kernels, their kernels and launches: whatever is asked of it, it does nothing."""

    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __getitem__(self, key: object) -> _Nothing:
        return self

    def __call__(self, *arguments: object, **named: object) -> None:
        return None


@contextmanager
def no_launches() -> Iterator[None]:
    """Inside, quantizers on the CPU prepare and would launch the kernels of a GPU; what they return is not computed.

    Left out is what Triton itself does in a launch, which needs a driver. Other operators run as always.
    """
    modules = {op: importlib.import_module(f"qmambair_basicsr.ops.{op}.triton") for op in OPS}
    chosen = backend._chosen

    def choice(op: str, *arguments: object) -> ModuleType:
        return modules.get(op) or chosen(op, *arguments)

    with ExitStack() as patches:
        for module in modules.values():
            patches.enter_context(mock.patch.object(module, "_kernels", _Nothing))
        patches.enter_context(mock.patch.object(backend, "_chosen", choice))
        yield
