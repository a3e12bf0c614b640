"""The passes between integer operators on the C++ kernels of ``kernels/cpu``; see ``glue.h`` there."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from ..native_library import address, is_available, threads
from ..prepared import Prepared, rows_of

__all__ = [
    "ACTIVATIONS",
    "COMBINATIONS",
    "Codes8",
    "DeltaWeights",
    "Rule",
    "delta",
    "is_available",
    "rows",
]

ACTIVATIONS = {None: 0, "silu": 1, "gelu": 2, "sigmoid": 3}
COMBINATIONS = {"multiply": 1, "add": 2, "multiply_silu": 3}
_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class Codes8(NamedTuple):
    """Codes in bytes and the grid that they are on.

    Attributes:
        data: uint8 rows, code + zero.
        grid: float32 (4,): step, shift, lowest and highest code.
        zero: what is added to a code.
    """

    data: Tensor
    grid: Tensor
    zero: int


class _Rule(ctypes.Structure):
    _fields_ = [("w", ctypes.c_float * 4), ("v", ctypes.c_float * 4)] + [
        (name, ctypes.c_float) for name in ("lowest", "highest", "cap_share")
    ]


class Rule:
    """The rule of DLS (``ops/dls``) and where the grid that follows from it is written.

    Args:
        w, v: (4,) weights of the statistics.
        lowest, highest: codes.
        cap_share: see ``ops.dls``.
    """

    def __init__(self, w: Tensor, v: Tensor, lowest: int, highest: int, cap_share: float):
        self.struct = _Rule(
            (ctypes.c_float * 4)(*w.tolist()), (ctypes.c_float * 4)(*v.tolist()), lowest, highest, cap_share
        )


def fields(*groups: tuple[type, str]) -> list[tuple[str, type]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class _Rows(ctypes.Structure):
    """Mirror of ``struct GlueArgs`` in kernels/cpu/glue.h."""

    _fields_ = fields(
        (_INT, "rows columns threads"),
        (_POINTER, "x"),
        (_INT, "x_stride"),
        (_POINTER, "x_scale added"),
        (_INT, "added_stride"),
        (_POINTER, "added_scale sum"),
        (_INT, "sum_stride"),
        (_POINTER, "norm_weight norm_bias"),
        (ctypes.c_double, "epsilon"),
        (_INT, "activation"),
        (_POINTER, "other"),
        (_INT, "other_stride combination"),
        (_POINTER, "out"),
        (_INT, "out_stride"),
        (_POINTER, "codes"),
        (_INT, "codes_stride"),
        (_POINTER, "grid"),
        (_INT, "zero"),
        (_POINTER, "codes2"),
        (_INT, "codes2_stride"),
        (_POINTER, "grid2"),
        (_INT, "zero2"),
        (_POINTER, "statistics rule new_grid"),
    )


class _Delta(ctypes.Structure):
    """Mirror of ``struct DeltaArgs``."""

    _fields_ = fields(
        (_INT, "rows directions channels rank threads"),
        (_POINTER, "dt"),
        (_INT, "dt_stride dt_zero"),
        (_POINTER, "dt_grid weight scale factor ones sums bias out codes grid"),
        (_INT, "zero"),
        (_POINTER, "statistics rule new_grid"),
    )


def _followed(statistics: Tensor | None, rule: Rule | None, new_grid: Tensor | None) -> dict[str, int | None]:
    at = None if rule is None else ctypes.addressof(rule.struct)
    return {"statistics": address(statistics), "rule": at, "new_grid": address(new_grid)}


def rows(
    x: Tensor,
    *,
    scale: Tensor | None = None,
    added: Tensor | None = None,
    added_scale: Tensor | None = None,
    total: Tensor | None = None,
    norm: torch.nn.LayerNorm | None = None,
    activation: str | None = None,
    other: Tensor | None = None,
    combine: str = "multiply",
    out: Tensor | None = None,
    codes: Codes8 | None = None,
    codes2: Codes8 | None = None,
    statistics: Tensor | None = None,
    rule: Rule | None = None,
    new_grid: Tensor | None = None,
) -> Prepared:
    """One pass over float32 rows (M, C), steps in the order of the arguments; what is None is left out.

    Args:
        x: input.
        scale: (C,), times x.
        added, added_scale: added to it, (M, C) and (C,).
        total: where the result so far goes, (M, C); it may be x.
        norm: LayerNorm over C with a weight.
        activation: silu | gelu | sigmoid.
        other, combine: a map (M, C) that the result is combined with: multiply | add | multiply_silu.
        out: where the result goes.
        codes, codes2: where its codes go, on up to two grids.
        statistics: where mean, unbiased standard deviation, minimum and maximum of the result go, (4,); as float64 gives
            them, whatever the order of the values is.
        rule, new_grid: where the grid that follows from the statistics goes, (4,).
    """
    count, columns = x.shape
    maps = {"x": x, "added": added, "sum": total, "other": other, "out": out}
    maps |= {"codes": codes and codes.data, "codes2": codes2 and codes2.data}
    given = {f"{name}_stride": rows_of(t, columns, count) for name, t in maps.items()}
    given |= {name: address(t) for name, t in maps.items()}
    for suffix, written in (("", codes), ("2", codes2)):
        if written is not None:
            given |= {f"grid{suffix}": address(written.grid), f"zero{suffix}": written.zero}
    if norm is not None:
        given |= {"norm_weight": address(norm.weight), "norm_bias": address(norm.bias), "epsilon": norm.eps}
    given |= {"x_scale": address(scale), "added_scale": address(added_scale)}
    given |= _followed(statistics, rule, new_grid)
    arguments = _Rows(
        rows=count,
        columns=columns,
        threads=threads(),
        activation=ACTIVATIONS[activation],
        combination=COMBINATIONS[combine],
        **given,
    )
    return Prepared(
        "qm_glue_rows", arguments, (*maps.values(), codes, codes2, norm, scale, added_scale, statistics, rule, new_grid)
    )


class DeltaWeights(NamedTuple):
    """Weights of the K projections that give delta.

    Attributes:
        codes: int8 (K, D, R).
        scale: (K, D).
        factor: (K, D) times the sum of a row's codes times ``ones`` (K,) times the step of dt, subtracted; or None.
        ones: see factor.
        sums: (K, D) times the shift of dt, subtracted; or None.
        bias: (K, D) or None.
    """

    codes: Tensor
    scale: Tensor
    factor: Tensor | None
    ones: Tensor | None
    sums: Tensor | None
    bias: Tensor | None


def delta(
    dt: Codes8,
    weights: DeltaWeights,
    *,
    out: Tensor | None = None,
    codes: Codes8 | None = None,
    statistics: Tensor | None = None,
    rule: Rule | None = None,
    new_grid: Tensor | None = None,
) -> Prepared:
    """The scan's delta (M, K, D) of codes dt (M, K R), recomputed by each pass that needs it.

    Args:
        out: where its values go, (M, K * D).
        codes: where its codes go, (M, K * D).
        statistics, rule, new_grid: see :func:`rows`.
    """
    count, (directions, channels, rank) = dt.data.shape[0], weights.codes.shape
    for t in (out, codes and codes.data):
        if t is not None and (t.shape != (count, directions * channels) or not t.is_contiguous()):
            raise ValueError(f"delta: expected ({count}, {directions * channels}), got {tuple(t.shape)}")
    arguments = _Delta(
        rows=count,
        directions=directions,
        channels=channels,
        rank=rank,
        threads=threads(),
        dt=address(dt.data),
        dt_stride=rows_of(dt.data, directions * rank),
        dt_zero=dt.zero,
        dt_grid=address(dt.grid),
        weight=address(weights.codes),
        **{name: address(t) for name, t in weights._asdict().items() if name != "codes"},
        out=address(out),
        codes=address(codes and codes.data),
        grid=address(codes and codes.grid),
        zero=0 if codes is None else codes.zero,
        **_followed(statistics, rule, new_grid),
    )
    return Prepared("qm_glue_delta", arguments, (dt, weights, out, codes, statistics, rule, new_grid))
