"""A scan of a network on codes: constants and tables in one object, and the choice between tables and exponentials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backend import choose
from ..ss2d_scan import ss2d_scan
from ..ss2d_scan.orders import DIRECTIONS
from . import (
    BACKENDS,
    OnGrid,
    Tables,
    build_tables,
    dequantize,
    empty_tables,
    prepared_scan,
    prepared_tables,
    table_scan,
)

_TOKENS_PER_ROW = 2
"""Tokens of an image for each row of a table that is made for it, at which the table pays. Measured at 6 and 8 bits, D 72 N 10
and D 120 N 16, on AVX-512 and AVX2, against the ordinary scan and writing out the values that it needs: constant tables
always paid (1.5 to 2 times at 64 tokens, 1.4 to 3 times at 4096), those of an image of 256 tokens and 8 bits did not
(0.32 ms against 0.27 ms), those of 1024 tokens did (0.65 ms against 0.69 ms, 1.01 ms against 1.33 ms)."""


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
        tokens = x.data.shape[1] * x.data.shape[2]
        if pays(self.bits, tokens, self.frozen, self.A):
            tables = self._tables_of(delta.grid)
            return table_scan(x, delta, tables, B, C, self.D, named, order=order, merge=merge, out=out)
        given = dequantize(x), dequantize(delta), self.A, dequantize(B), dequantize(C), self.D, self.delta_bias
        y = ss2d_scan(*given, self.softplus, named, order=order, merge=merge)
        return y if out is None else out.copy_(y)

    def prepared(
        self, x: OnGrid, delta: OnGrid, B: OnGrid, C: OnGrid, *, order: Tensor | None = None, out: Tensor
    ) -> list[Callable[[], object]]:
        """Functions that scan together, one after the other, for tensors that are written anew before each call.

        Args:
            x, delta, B, C: see :func:`table_scan`.
            order: contiguous int32, see :func:`prepared_scan`.
            out: (P, B, H, W, D), maps whose sum is the result.
        """
        tokens = x.data.shape[1] * x.data.shape[2]
        if not pays(self.bits, tokens, self.frozen, self.A):

            def scan() -> None:
                self(x, delta, B, C, order=order, out=out[0])
                out[1:].zero_()

            return [scan]
        named = self.directions if order is None else None
        tables = self._tables_of(delta.grid) if self.frozen else self._memory(delta.grid)
        step = prepared_scan(x, delta, tables, B, C, self.D, named, order=order, out=out)
        if self.frozen:
            return [step]
        return [prepared_tables(delta.grid, self.A, self.delta_bias, self.softplus, tables), step]

    def _memory(self, grid: Tensor) -> Tables:
        groups = grid.numel() // 4
        if self._tables is None or len(self._tables.steps) != groups:
            self._tables = empty_tables(groups, *self.A.shape, self.bits, self.A.new_empty(0, dtype=torch.float32))
        return self._tables

    def _tables_of(self, grid: Tensor) -> Tables:
        if self._tables is not None and self.frozen:
            return self._tables
        self._memory(grid)
        return build_tables(grid, self.bits, self.A, self.delta_bias, self.softplus, self._tables)


def pays(bits: int, tokens: int, frozen: bool, like: Tensor) -> bool:
    """Whether a scan with tables is faster than one with exponentials; on a GPU it is not (measured, README.md).

    Args:
        bits: of the codes of delta.
        tokens: of an image.
        frozen: tables are made once.
        like: a tensor on the device of the scan.
    """
    native = choose("table_scan", BACKENDS, like).__name__.endswith(".native")
    return native and (frozen or tokens >= _TOKENS_PER_ROW * 2**bits)
