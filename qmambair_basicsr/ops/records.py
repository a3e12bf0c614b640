"""The structs that the CPU kernels of the quantizers take (``kernels/cpu/quant.h``), and calls with any number of them.

A struct begins with addresses; the numbers behind them are the same in every step of a training, so those of many items
are packed once and kept, and a call only fills in where its tensors lie.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .native_library import function, threads

_FEW = 8  # items whose structs are packed anew in every call


class Records:
    """Form of a struct.

    Args:
        addresses: how many it begins with.
        numbers: what follows, in the letters of the module ``struct``.
    """

    def __init__(self, addresses: int, numbers: str) -> None:
        self._nowhere = (0,) * addresses
        self.pack = struct.Struct(f"{addresses}P{numbers}").pack
        self._packed = functools.lru_cache(64)(self._pack_all)

    def run(self, name: str, numbers: Sequence[tuple], *columns: Sequence[Tensor | None] | None) -> None:
        """Call a function of the quantizers with one struct for each item, if there are any.

        Args:
            name: of the function.
            numbers: of every item.
            columns: the tensors of all items whose addresses come first, second ...; None, or left out at the end, where the
                function reads none.

        Raises:
            ValueError: the function refuses its arguments.
        """
        if not numbers:
            return
        places = [None if c is None else [0 if t is None else t.data_ptr() for t in c] for c in columns]
        if len(numbers) <= _FEW:
            nowhere = (0,) * len(numbers)
            rows = zip(*(nowhere if p is None else p for p in places), strict=True)
            rest = self._nowhere[len(places) :]
            given = b"".join([self.pack(*row, *rest, *each) for row, each in zip(rows, numbers, strict=True)])
            function(name, "pii")(given, len(numbers), threads())
            return
        items = self._packed(tuple(numbers)).copy()
        for k, place in enumerate(places):
            if place is not None:
                items[:, k] = place
        function(name, "pii")(items.ctypes.data, len(items), threads())

    def run_one(self, name: str, addresses: tuple[int, ...], numbers: tuple) -> None:
        """:meth:`run` for a single item, from all addresses of its struct (0 where nothing is read)."""
        function(name, "pii")(self.pack(*addresses, *numbers), 1, threads())

    def _pack_all(self, numbers: tuple[tuple, ...]) -> np.ndarray:
        """All structs without their addresses, (items, words) int64."""
        packed = b"".join(self.pack(*self._nowhere, *each) for each in numbers)
        return np.frombuffer(packed, np.int64).reshape(len(numbers), -1)
