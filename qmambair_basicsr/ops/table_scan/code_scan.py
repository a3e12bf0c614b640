"""A scan of a network on codes: constants and tables in one object, and the choice between tables and exponentials."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend import choose
from ..ss2d_scan import ss2d_scan
from ..ss2d_scan.orders import DIRECTIONS
from . import BACKENDS, OnGrid, Tables, build_tables, dequantize, empty_tables, table_scan

_MOST_BITS = 6
"""Of delta. ``kernels/bench/bench_table_scan.py``, frozen, D 72 N 10 and D 120 N 16, AVX-512 and AVX2: 1.7 to 2.6 times as
fast as exponentials at 6 bits; 1.0 to 1.5 times at 8, where tables no longer stay in the cache nearest to the CPU."""


class CodeScan:
    """The scan of one layer on maps on grids, decays and steps from tables where that is faster.

    Args:
        A: (K, D, N), negative.
        delta_bias: (K, D) or None.
        D: (K, D) or None.
        bits: of the codes of delta.
        directions: names, see ``ss2d_scan``; None for all four, or where calls give an order.
        frozen: the grid of delta is the same in every call: tables are made in the first one.
        softplus: dt is ``softplus(delta + delta_bias)``.
    """

    def __init__(
        self,
        A: Tensor,
        delta_bias: Tensor | None,
        D: Tensor | None,
        bits: int,
        directions: Sequence[str] | None = DIRECTIONS,
        frozen: bool = False,
        softplus: bool = True,
    ):
        self.A, self.delta_bias, self.D, self.bits, self.frozen, self.softplus = (
            A,
            delta_bias,
            D,
            bits,
            frozen,
            softplus,
        )
        self.directions = None if directions is None else tuple(directions)
        self._tables: Tables | None = None

    def __call__(
        self,
        x: OnGrid,
        delta: OnGrid,
        B: OnGrid,
        C: OnGrid,
        *,
        order: Tensor | None = None,
        merge: bool = True,
        out: Tensor | None = None,
    ) -> Tensor:
        """Scan, see :func:`table_scan`."""
        named = self.directions if order is None else None
        if pays(self.bits, self.A):
            tables = self._tables_of(delta.grid)
            return table_scan(x, delta, tables, B, C, self.D, named, order=order, merge=merge, out=out)
        given = dequantize(x), dequantize(delta), self.A, dequantize(B), dequantize(C), self.D, self.delta_bias
        y = ss2d_scan(*given, self.softplus, named, order=order, merge=merge)
        return y if out is None else out.copy_(y)

    def _tables_of(self, grid: Tensor) -> Tables:
        groups = grid.numel() // 4
        if self._tables is not None and self.frozen:
            return self._tables
        if self._tables is None or len(self._tables.steps) != groups:
            self._tables = empty_tables(groups, *self.A.shape, self.bits, self.A.new_empty(0, dtype=torch.float32))
        return build_tables(grid, self.bits, self.A, self.delta_bias, self.softplus, self._tables)


def pays(bits: int, A: Tensor) -> bool:
    """Whether a scan with tables is faster than one with exponentials."""
    return bits <= _MOST_BITS and choose("table_scan", BACKENDS, A).__name__.endswith(".native")
