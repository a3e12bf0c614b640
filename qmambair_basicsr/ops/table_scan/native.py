"""The scan on codes on the C++ kernels of ``kernels/cpu``; signatures and meaning are those of ``reference.py``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..native_library import address, dense, is_available, threads
from ..prepared import Prepared
from . import OnGrid, Tables

__all__ = ["DEVICES", "build", "is_available", "prepared_build", "prepared_scan", "scan"]

DEVICES = ("cpu",)
_VALUES, _CODES, _ON_ENTERING = 0, 1, 2  # ``enum OperandKind``


class _Operand(ctypes.Structure):
    """Mirror of ``struct Operand`` in kernels/cpu/table_scan.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int64),
        ("grid", ctypes.c_void_p),
        ("grid_stride", ctypes.c_int64),
        ("bits", ctypes.c_int64),
        ("stride", ctypes.c_int64 * 4),
    ]


class _TableScanArgs(ctypes.Structure):
    """Mirror of ``struct TableScanArgs``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "directions", "channels", "state")),
        *((name, ctypes.c_int64) for name in ("row", "merge", "parts", "threads", "trusted")),
        *((name, ctypes.c_void_p) for name in ("order", "path")),
        *((name, _Operand) for name in ("x", "delta", "B", "C")),
        *((name, ctypes.c_void_p) for name in ("decays", "steps")),
        *((name, ctypes.c_int64) for name in ("decays_stride", "steps_stride")),
        *((name, ctypes.c_void_p) for name in ("D", "y")),
    ]


class _ScanTablesArgs(ctypes.Structure):
    """Mirror of ``struct ScanTablesArgs``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("groups", "directions", "channels", "state", "row", "bits")),
        *((name, ctypes.c_int64) for name in ("softplus", "threads")),
        *((name, ctypes.c_void_p) for name in ("grid", "A", "bias", "decays", "steps")),
    ]


def _optional(t: Tensor | None) -> Tensor | None:
    return None if t is None else dense(t)


def _contiguous(tables: Tables) -> None:
    for t in tables[:2]:
        if not t.is_contiguous() or t.dtype != torch.float32:
            raise ValueError(f"table_scan: tables must be contiguous float32, got {t.dtype} with strides {t.stride()}")


def prepared_build(grid: Tensor, A: Tensor, delta_bias: Tensor | None, softplus: bool, out: Tables) -> Prepared:
    """``build`` with its arguments worked out once, for a grid that is written anew before each call."""
    _contiguous(out)
    grid, A, bias = dense(grid), dense(A), _optional(delta_bias)
    args = _ScanTablesArgs(
        *(grid.shape[0], *A.shape, out.decays.shape[-1], out.bits),
        *(softplus, threads()),
        *(address(t) for t in (grid, A, bias, out.decays, out.steps)),
    )
    return Prepared("qm_scan_tables", args, (grid, A, bias, out))


def build(grid: Tensor, A: Tensor, delta_bias: Tensor | None, softplus: bool, out: Tables) -> None:
    """See ``reference.build``."""
    prepared_build(grid, A, delta_bias, softplus, out)()


class _Operands:
    """Operands as the kernels get them, and the tensors whose addresses they hold."""

    def __init__(self):
        self.kept = []

    def add(self, operand: OnGrid) -> _Operand:
        data = operand.data if operand.data.dtype == torch.uint8 else operand.data.to(torch.float32)
        if data.stride(-1) != 1 and data.shape[-1] != 1:
            data = data.contiguous()
        grid = _optional(operand.grid)
        self.kept += data, grid
        kind = _VALUES if grid is None else _CODES if data.dtype == torch.uint8 else _ON_ENTERING
        strides = (*data.stride()[:3], data.stride(3) if data.dim() == 5 else 0)
        per_image = 4 if grid is not None and grid.numel() > 4 else 0
        return _Operand(address(data), kind, address(grid), per_image, operand.bits, strides)


def prepared_scan(
    x: OnGrid,
    delta: OnGrid,
    tables: Tables,
    B: OnGrid,
    C: OnGrid,
    D: Tensor | None,
    directions: list[int] | Tensor,
    merge: bool,
    out: Tensor,
    *,
    parts: int = 1,
    trusted: bool = False,
) -> Prepared:
    """``scan`` with its arguments worked out once, for tensors that are written anew before each call.

    Args:
        parts: maps in ``out`` that merged directions are dealt out to.
        trusted: an order is known to be a permutation; otherwise each call looks at it.
    """
    _contiguous(tables)
    operands, skip = _Operands(), _optional(D)
    explicit = isinstance(directions, Tensor)
    order = directions if explicit else (ctypes.c_int64 * len(directions))(*directions)
    decays, steps, _ = tables
    batch, height, width, count, channels = delta.data.shape
    args = _TableScanArgs(
        *(batch, height, width, count, channels, B.data.shape[-1], decays.shape[-1]),
        *(merge, parts, threads(), trusted),
        None if explicit else ctypes.addressof(order),
        address(order) if explicit else None,
        *(operands.add(operand) for operand in (x, delta, B, C)),
        *(address(decays), address(steps)),
        *((t.stride(0) if len(t) > 1 else 0) for t in (decays, steps)),
        *(address(skip), address(out)),
    )
    return Prepared("qm_table_scan", args, (operands, skip, order, tables, out))


def scan(
    x: OnGrid,
    delta: OnGrid,
    tables: Tables,
    B: OnGrid,
    C: OnGrid,
    D: Tensor | None,
    directions: list[int] | Tensor,
    merge: bool,
    out: Tensor,
) -> None:
    """See ``reference.scan``."""
    prepared_scan(x, delta, tables, B, C, D, directions, merge, out, trusted=True)()  # ``orders.verified`` has looked
