"""Selective scan of maps on grids: where delta is a code, decays and steps are looked up (README.md has the maths).

At inference A and the bias of delta are constants, and a code of n bits has 2^n values, so ``softplus(delta + bias)`` and
``exp(softplus A)`` of a channel and a state have as many. Tables of them, made once for a constant grid or once per image
for one that follows the image, take the exponentials out of the scan. Inference only: no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backend import choose
from ..ss2d_scan.orders import DIRECTIONS, check_form, codes, verified

__all__ = [
    "BACKENDS",
    "OnGrid",
    "Tables",
    "build_tables",
    "dequantize",
    "empty_tables",
    "prepared_scan",
    "prepared_tables",
    "table_row",
    "table_scan",
]

BACKENDS = ("native", "triton", "reference")
_MOST_STATES = 256


class OnGrid(NamedTuple):
    """A map whose values lie on a grid.

    Attributes:
        data: uint8, code + 2^(bits - 1); or float32, values that are put on the grid as they are read.
        grid: (4,) or (B, 4), one per image: step, offset, lowest and highest code, as ``ops.dls`` gives them: codes are
            ``round(clamp((x + offset) / step, lowest, highest))``, values ``(code - offset / step) step``. None: the
            values of ``data`` (float32) as they are.
        bits: of the codes, 1 to 8.
    """

    data: Tensor
    grid: Tensor | None = None
    bits: int = 8


class Tables(NamedTuple):
    """What a scan looks up by the code of delta plus 2^(bits - 1), for G images or (G = 1) for all.

    Attributes:
        decays: (G, K, D, L, R), ``exp(dt A) - 1``; L is :func:`table_levels` of the bits, R :func:`table_row` of the
            states, zero beyond them.
        steps: (G, K, D, L), dt.
        bits: of the codes of delta.
    """

    decays: Tensor
    steps: Tensor
    bits: int


def table_row(state: int) -> int:
    """Entries of a row of decays with so many states: whole vectors of every CPU."""
    return 4 if state <= 4 else 8 if state <= 8 else (state + 15) // 16 * 16


def table_levels(bits: int) -> int:
    """Rows of a table: those of 4 bits at least, so that tables of few bits have one shape; further rows are not used."""
    return 2 ** max(bits, 4)


def empty_tables(
    groups: int, directions: int, channels: int, state: int, bits: int, like: Tensor | None = None
) -> Tables:
    """Memory for tables.

    Args:
        groups, directions, channels, state, bits: sizes.
        like: a tensor on the device and of the precision of the tables; None for float32 on the CPU.
    """
    like = torch.empty(0) if like is None else like
    decays = like.new_empty(groups, directions, channels, table_levels(bits), table_row(state))
    return Tables(decays, like.new_empty(decays.shape[:-1]), bits)


def build_tables(
    grid: Tensor, bits: int, A: Tensor, delta_bias: Tensor | None, softplus: bool = True, out: Tables | None = None
) -> Tables:
    """The tables of a scan.

    Args:
        grid: (4,) or (G, 4), of delta, see :class:`OnGrid`; float32, or float64 for the reference.
        bits: of its codes, 1 to 8.
        A: (K, D, N), negative.
        delta_bias: (K, D) or None.
        softplus: dt is ``softplus(delta + delta_bias)``; otherwise the sum.
        out: memory for the result, from :func:`empty_tables`.

    Raises:
        ValueError: a shape that does not fit, bits or states that no table has.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"table_scan: codes have 1 to 8 bits, got {bits}")
    if A.dim() != 3 or 0 in A.shape or A.shape[-1] > _MOST_STATES:
        raise ValueError(f"table_scan: A must be (K, D, N) with N up to {_MOST_STATES}, got shape {tuple(A.shape)}")
    grids = grid.reshape(-1, 4)
    if out is None:
        out = empty_tables(grids.shape[0], *A.shape, bits, grids)
    _check_tables(grids, A, delta_bias, out)
    choose("table_scan", BACKENDS, grids).build(grids, A, delta_bias, softplus, out._replace(bits=bits))
    return out


def prepared_tables(
    grid: Tensor, A: Tensor, delta_bias: Tensor | None, softplus: bool, out: Tables
) -> Callable[[], None]:
    """:func:`build_tables` for a grid that is written anew before each call; on the native kernels."""
    from . import native

    grids = grid.reshape(-1, 4)
    _check_tables(grids, A, delta_bias, out)
    return native.prepared_build(grids, A, delta_bias, softplus, out)


def _check_tables(grids: Tensor, A: Tensor, delta_bias: Tensor | None, out: Tables) -> None:
    _fits("delta_bias", delta_bias, A.shape[:2])
    shape = (grids.shape[0], *A.shape[:2], table_levels(out.bits), table_row(A.shape[-1]))
    _fits("out.decays", out.decays, shape)
    _fits("out.steps", out.steps, shape[:-1])


def table_scan(
    x: OnGrid,
    delta: OnGrid,
    tables: Tables,
    B: OnGrid,
    C: OnGrid,
    D: Tensor | None = None,
    directions: Sequence[str] | None = None,
    *,
    order: Tensor | None = None,
    merge: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`ops.ss2d_scan.ss2d_scan` of maps on grids, decays and steps from tables; the state is float32.

    Args:
        x: (B, H, W, D), read by every direction, or (B, H, W, K, D).
        delta: (B, H, W, K, D), before bias and softplus; on a grid.
        tables: of the grid of ``delta``.
        B, C: (B, H, W, K, N).
        D: (K, D) or None.
        directions, order, merge: as in ``ss2d_scan``.
        out: contiguous memory for the result.

    Returns:
        (B, H, W, D), or (B, H, W, K, D) with ``merge=False``, in the precision of the tables.

    Raises:
        ValueError: a shape that does not fit, an unknown direction, an order that is no permutation.
        TypeError: an operand that is neither codes on a grid nor values in floating point.
    """
    if order is not None and directions is not None:
        raise ValueError("table_scan: give directions or order, not both")
    named = [] if order is not None else codes(DIRECTIONS if directions is None else directions)
    shape = _check(x, delta, tables, B, C, D, order, named)
    paths = named if order is None else verified(order, shape[3], shape[1] * shape[2])
    batch, height, width, count, channels, _ = shape
    result = (batch, height, width, channels) if merge else (batch, height, width, count, channels)
    if out is None:
        out = tables.steps.new_empty(result)
    elif out.shape != result or not out.is_contiguous() or out.dtype != tables.steps.dtype:
        raise ValueError(
            f"table_scan: out must be contiguous {tables.steps.dtype} of shape {result}, got {tuple(out.shape)}"
        )
    choose("table_scan", BACKENDS, tables.steps).scan(x, delta, tables, B, C, D, paths, merge, out)
    return out


def prepared_scan(
    x: OnGrid,
    delta: OnGrid,
    tables: Tables,
    B: OnGrid,
    C: OnGrid,
    D: Tensor | None = None,
    directions: Sequence[str] | None = None,
    *,
    order: Tensor | None = None,
    out: Tensor,
) -> Callable[[], None]:
    """:func:`table_scan` for tensors that are written anew before each call; on the native kernels.

    Args:
        x, delta, tables, B, C, D, directions: as in :func:`table_scan`.
        order: contiguous int32; each call looks at what it holds then.
        out: (P, B, H, W, D), contiguous float32: sums over P shares of the directions, which threads work at side by side.

    Raises:
        ValueError: as :func:`table_scan`; the returned function where the order is no permutation.
    """
    from . import native

    named = [] if order is not None else codes(DIRECTIONS if directions is None else directions)
    shape = _check(x, delta, tables, B, C, D, order, named)
    if order is not None and (order.dtype != torch.int32 or not order.is_contiguous()):
        raise ValueError(f"table_scan: a prepared order must be contiguous int32, got {order.dtype}")
    wanted = (*shape[:3], shape[4])
    if out.shape[1:] != wanted or not 1 <= len(out) <= shape[3] or not out.is_contiguous():
        raise ValueError(
            f"table_scan: out must be contiguous, 1 to {shape[3]} maps of shape {wanted}, got {tuple(out.shape)}"
        )
    paths = named if order is None else order
    return native.prepared_scan(x, delta, tables, B, C, D, paths, True, out, parts=len(out))


def dequantize(x: OnGrid, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of a map, in the order of operations of the quantizers."""
    if x.grid is None:
        return x.data.to(dtype)
    step, offset, lowest, highest = along(x.grid.to(dtype), x.data)
    if x.data.dtype == torch.uint8:
        found = x.data.to(dtype) - 2 ** (x.bits - 1)
    else:
        found = ((x.data.to(dtype) + offset) / step).clamp(lowest, highest).round()
    return (found - offset / step) * step


def along(grid: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Step, offset, lowest and highest code in the shape of ``x``."""
    return grid.reshape(-1, 4, *[1] * (x.dim() - 1)).unbind(1)


def _fits(name: str, t: Tensor | None, shape: Sequence[int]) -> None:
    if t is not None and tuple(t.shape) != tuple(shape):
        raise ValueError(f"table_scan: {name} must have shape {tuple(shape)}, got {tuple(t.shape)}")


def _check(x, delta, tables, B, C, D, order, directions) -> tuple[int, ...]:
    """Sizes (B, H, W, K, D, N) of a scan, after everything that comes in was looked at but the values of an order."""
    if x.data.dim() not in (4, 5):
        raise ValueError(f"table_scan: x must be (B, H, W, D) or (B, H, W, K, D), got shape {tuple(x.data.shape)}")
    count = delta.data.shape[-2] if order is not None and delta.data.dim() == 5 else len(directions)
    (batch, height, width), channels, state = x.data.shape[:3], x.data.shape[-1], B.data.shape[-1]
    pixels = (batch, height, width, count)
    _fits("x", x.data, (*pixels, channels) if x.data.dim() == 5 else (batch, height, width, channels))
    _fits("delta", delta.data, (*pixels, channels))
    _fits("B", B.data, (*pixels, state))
    _fits("C", C.data, (*pixels, state))
    _fits("D", D, (count, channels))
    if 0 in x.data.shape or count * state == 0 or state > _MOST_STATES:
        raise ValueError(
            f"table_scan: x {tuple(x.data.shape)} with {count} directions and N = {state} cannot be scanned"
        )
    groups = tables.steps.shape[0]
    shape = (groups, count, channels, table_levels(delta.bits))
    _fits("tables.steps", tables.steps, shape)
    _fits("tables.decays", tables.decays, (*shape, table_row(state)))
    if groups not in (1, batch) or tables.bits != delta.bits:
        raise ValueError(
            f"table_scan: tables of {groups} images and {tables.bits} bits do not fit {batch} images of {delta.bits} bits"
        )
    for name, operand in (("x", x), ("delta", delta), ("B", B), ("C", C)):
        _check_operand(name, operand, batch)
    if order is not None:
        check_form(order, count, height * width)
    return *pixels, channels, state


def _check_operand(name: str, operand: OnGrid, batch: int) -> None:
    data, grid, bits = operand
    if grid is None and (name == "delta" or not data.is_floating_point()):
        raise TypeError(f"table_scan: {name} ({data.dtype}) needs a grid")
    if not (data.is_floating_point() or data.dtype == torch.uint8):
        raise TypeError(f"table_scan: {name} must be uint8 codes or values in floating point, got {data.dtype}")
    if grid is not None and (grid.numel() not in (4, 4 * batch) or not 1 <= bits <= 8):
        raise ValueError(
            f"table_scan: {name} has a grid of shape {tuple(grid.shape)} and {bits} bits; a grid is (4,) or "
            f"({batch}, 4), bits are 1 to 8"
        )
