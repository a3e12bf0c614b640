"""Calls of C functions whose arguments are worked out once and used for every image: addresses of buffers that stay."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable

from torch import Tensor

from .native_library import function, refuse, threads


class Prepared:
    """A C function with its arguments in a struct; calling it runs it.

    Args:
        name: symbol, ``int64 name(const struct*)``, which returns 0 where it did its work.
        arguments: the struct.
        kept: tensors and structs whose addresses are in it.
    """

    __slots__ = ("address", "arguments", "kept", "symbol")

    def __init__(self, name: str, arguments: ctypes.Structure, kept: tuple):
        self.arguments, self.kept = arguments, kept
        self.address, self.symbol = ctypes.addressof(arguments), function(name, "p")

    def __call__(self) -> None:
        """Run it.

        Raises:
            ValueError: the C function refuses its arguments.
            MemoryError: it got no memory.
        """
        self.symbol(self.address)


class _Step(ctypes.Structure):
    """Mirror of ``struct ProgramStep`` in kernels/cpu/program.h."""

    _fields_ = [("run", ctypes.c_void_p), ("args", ctypes.c_void_p)]


class _Program(ctypes.Structure):
    """Mirror of ``struct ProgramArgs``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "threads")),
        ("steps", ctypes.c_void_p),
        ("failed", ctypes.c_int64),
    ]


class PreparedProgram:
    """Prepared calls as one call, without Python between them; threads stay together all the while.

    Args:
        calls: in the order in which they run.
    """

    __slots__ = ("address", "arguments", "calls", "steps", "symbol")

    def __init__(self, calls: Iterable[Prepared]):
        self.calls = tuple(calls)
        given = [(ctypes.cast(call.symbol, ctypes.c_void_p), call.address) for call in self.calls]
        self.steps = (_Step * len(given))(*given)
        self.arguments = _Program(len(given), threads(), ctypes.addressof(self.steps))
        self.address, self.symbol = ctypes.addressof(self.arguments), function("qm_run", "p", status=False)

    def __call__(self) -> None:
        """Run them.

        Raises:
            ValueError, MemoryError: as the first call does that cannot do its work; those behind it do not run.
        """
        status = self.symbol(self.address)
        if status:
            refuse(status, self.calls[self.arguments.failed].symbol)


def joined(steps: Iterable[Callable[[], object]]) -> list[Callable[[], object]]:
    """The same steps, neighbouring prepared calls as one."""
    result: list[Callable[[], object]] = []
    for prepared, group in itertools.groupby(steps, key=lambda step: isinstance(step, Prepared)):
        together = tuple(group)
        result += (PreparedProgram(together),) if prepared else together
    return result


def rows_of(t: Tensor | None, columns: int, rows: int | None = None) -> int:
    """Stride of the rows of a map (rows, columns) whose rows are dense; 0 for None.

    Raises:
        ValueError: another shape, or gaps within a row.
    """
    if t is None:
        return 0
    if t.ndim != 2 or t.shape[1] != columns or (t.stride(1) != 1 and columns > 1) or rows not in (None, t.shape[0]):
        raise ValueError(
            f"expected dense rows ({rows or 'any'}, {columns}), got {tuple(t.shape)} with strides {t.stride()}"
        )
    return t.stride(0) if t.shape[0] > 1 else columns
