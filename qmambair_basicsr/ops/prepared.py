"""Calls of C functions whose arguments are worked out once and used for every image: addresses of buffers that stay."""

from __future__ import annotations

import ctypes

from torch import Tensor

from .native_library import function


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
