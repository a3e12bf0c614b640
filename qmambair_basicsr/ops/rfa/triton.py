"""``rfa`` on GPUs in Triton: one launch forward and one backward for any number of tensors, copied side by side.

The backward launch leaves sums per tile, which the last program of a tensor adds up in a fixed order: results do not vary
from run to run, nor with the tensors that share a launch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import empty_together
from ..triton_support import DEVICES, is_available, next_power_of_2, on_its_device
from ..triton_tables import remembered, side_by_side, table
from . import reference
from .item import RFAItem, backward_one, forward_one

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

_BLOCK = 1024  # forward; backward takes four times as many, for fewer partial sums


@functools.cache
def _kernels():
    from . import triton_kernels  # importing it needs Triton

    return triton_kernels


@remembered
def _table(items: tuple[tuple, ...], block: int, device: torch.device):
    """The table of items (values, thresholds and four constants each) for tiles of so many values."""
    ints, counts = [], []
    start = first = thresholds = sums = 0
    for values, count, *_ in items:
        tiles = -(-values // block)
        ints.append((start, values, first, count, thresholds, sums))
        counts.append(tiles)
        start, first, thresholds = start + values, first + tiles, thresholds + count
        sums += tiles * (4 + 2 * count)
    return table(ints, [item[2:] for item in items], [counts], device)


def _table_of(items: Sequence[RFAItem], block: int):
    def constants(t: RFAItem) -> tuple[float, ...]:
        floor, min_gap = (-1.0 if number is None else number for number in (t.floor, t.min_gap))
        return float(t.qmin), floor, t.grad_scale, min_gap

    key = tuple((t.w.numel(), t.thresholds.numel(), *constants(t)) for t in items)
    return _table(key, block, items[0].w.device)


def _parameters(items: Sequence[RFAItem]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(side_by_side([item[k] for item in items]) for k in (1, 2, 3))


def forward_items(items: Sequence[RFAItem]) -> list[Tensor]:
    """Every item quantized, w contiguous float32: the bits of the reference."""
    outs: list[Tensor | None] = [forward_one(reference, t) if t.w.numel() == 0 else None for t in items]
    chosen = [item for item, out in zip(items, outs, strict=True) if out is None]
    found = iter(_forward(chosen[0].w, chosen) if chosen else ())
    return [next(found) if out is None else out for out in outs]


def backward_items(
    grads: Sequence[Tensor], items: Sequence[RFAItem], kept: Sequence[Tensor] = ()
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients of w, scale, offset and thresholds of every item."""
    pairs = list(zip(grads, items, strict=True))
    outs: list = [backward_one(reference, grad, t) if t.w.numel() == 0 else None for grad, t in pairs]
    chosen = [pair for pair, out in zip(pairs, outs, strict=True) if out is None]
    found = iter(_backward(chosen[0][0], *zip(*chosen, strict=True)) if chosen else ())
    return [next(found) if out is None else out for out in outs]


@on_its_device
def _forward(_: Tensor, items: Sequence[RFAItem]) -> Sequence[Tensor]:
    made = _table_of(items, _BLOCK)
    outs = empty_together([t.w for t in items])
    _kernels().rfa_forward[(made.tiles[0].numel(),)](
        side_by_side([t.w for t in items]), *_parameters(items), outs[0], made.ints, made.floats, made.tiles[0],
        BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return outs


@on_its_device
def _backward(
    _: Tensor, grads: Sequence[Tensor], items: Sequence[RFAItem]
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    made = _table_of(items, 4 * _BLOCK)
    device, programs = grads[0].device, made.tiles[0].numel()
    parameters = _parameters(items)
    thresholds = parameters[2].numel()
    most = max(t.thresholds.numel() for t in items)
    to_w = empty_together([t.w for t in items])
    to_parameters = torch.empty(2 * len(items) + thresholds, device=device)
    d_scale, d_offset, d_thresholds = to_parameters.split((len(items), len(items), thresholds))
    ordered, sources = torch.empty(2, thresholds, device=device)
    sums = torch.empty(programs * (4 + 2 * most), device=device)
    counter = torch.zeros(len(items), dtype=torch.int32, device=device)
    _kernels().rfa_backward[(programs,)](
        side_by_side(grads), side_by_side([t.w for t in items]), *parameters, to_w[0], d_scale, d_offset, d_thresholds,
        ordered, sources, sums, counter, made.ints, made.floats, made.tiles[0], LEVELS=next_power_of_2(most),
        BLOCK=4 * _BLOCK, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    split = torch._utils._unflatten_dense_tensors
    each = (split(flat, [t[k] for t in items]) for k, flat in ((1, d_scale), (2, d_offset), (3, d_thresholds)))
    return list(zip(to_w, *each, strict=True))
