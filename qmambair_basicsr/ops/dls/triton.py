"""``dls`` on GPUs in Triton: two launches forward and two backward, for one tensor or for many.

The first leaves statistics (or sums) of parts of each row, which every program of the second merges in float64 and in a
fixed order: results do not vary from run to run, nor with the tensors that share a launch. Up to four tensors are read where
they are, more are copied side by side first.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import empty_together
from ..triton_support import DEVICES, is_available, on_its_device
from ..triton_tables import SLOTS, remembered, side_by_side, table
from . import reference
from .item import DLSItem

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

_SUM_BLOCK = 4096  # values a program reduces at a time
_MAP_BLOCK, _MAP_BLOCKS = 1024, 4  # values a program maps at a time, and how often
_PARTS = 256  # parts of a row, at most; fewer where many rows give programs enough
_MANY_ROWS, _FEWER = 4, 64


@functools.cache
def _kernels():
    from . import triton_kernels  # importing it needs Triton

    return triton_kernels


def _split(rows: int, values: int) -> tuple[int, int]:
    """Values per part and number of parts of a row."""
    blocks = -(-values // _SUM_BLOCK)
    part = -(-blocks // (_PARTS if rows < _MANY_ROWS else _FEWER)) * _SUM_BLOCK
    return part, -(-values // part)


@remembered
def _table(items: tuple[tuple, ...], side: bool, device: torch.device):
    """The table of items (rows, values of a row, and four constants each), side by side or not."""
    ints, sums, maps = [], [], []
    start = first_sum = first_map = first_row = 0
    for rows, values, *_ in items:
        part, parts = _split(rows, values)
        blocks = -(-values // (_MAP_BLOCK * _MAP_BLOCKS))
        place = first_sum, blocks, first_map, 8 * first_row, first_row
        ints.append((start if side else 0, rows, values, part, parts, *place))
        sums.append(rows * parts)
        maps.append(rows * blocks)
        start, first_row = start + rows * values, first_row + rows
        first_sum, first_map = first_sum + sums[-1], first_map + maps[-1]
    aligned = all(n % 4 == 0 for place in ints for n in (place[0], place[2]))
    return table(ints, [item[2:] for item in items], [sums, maps], device, aligned)


class _Launch:
    """What the launches for some items share."""

    def __init__(self, items: Sequence[DLSItem]):
        self.items = items
        self.side = len(items) > SLOTS
        key = tuple(
            (t.rows, t.x.numel() // t.rows, float(t.qmin), float(t.qmax), t.cap_share, t.grad_scale) for t in items
        )
        self.table = _table(key, self.side, items[0].x.device)
        self.slots = 0 if self.side else len(items)
        self.rows = sum(t.rows for t in items)
        self.sum_programs, self.map_programs = (t.numel() for t in self.table.tiles)
        self.w, self.v = self.pointers([t.w for t in items]), self.pointers([t.v for t in items])

    def pointers(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Four arguments of a kernel that lead to the values of all items."""
        if self.side:
            flat = side_by_side(tensors)
            return (flat,) * SLOTS
        dense = [t if t.is_contiguous() or t.ndim == 4 else t.contiguous() for t in tensors]
        return (*dense, *dense[:1] * (SLOTS - len(dense)))

    def empty(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Memory for a result like every x, and its pointers."""
        tensors = [t.x for t in self.items]
        if self.side:
            made = empty_together(tensors)
            return made, made[:1] * SLOTS
        made = [torch.empty_like(t) for t in tensors]
        return made, (*made, *made[:1] * (SLOTS - len(made)))

    def forward(self) -> tuple[Sequence[Tensor], list[Tensor]]:
        """Quantized tensors, and statistics and grid of each."""
        device = self.table.ints.device
        x = self.pointers([t.x for t in self.items])
        parts = torch.empty(4 * self.sum_programs, device=device)
        kept = torch.empty(2 * self.rows, 4, device=device)
        outs, y = self.empty()
        ints, floats, (of_sums, of_maps), aligned = self.table
        kernels = _kernels()
        kernels.statistics[(self.sum_programs,)](
            *x, parts, ints, of_sums, SLOTS=self.slots, ALIGNED=aligned, BLOCK=_SUM_BLOCK, num_warps=8
        )
        kernels.quantize[(self.map_programs,)](
            *x, *self.w, *self.v, *y, parts, kept, ints, floats, of_maps, SLOTS=self.slots, ALIGNED=aligned, BP=_PARTS,
            BLOCK=_MAP_BLOCK, BLOCKS=_MAP_BLOCKS, num_warps=4,
        )  # fmt: skip
        return outs, list(kept.split([t.rows for t in self.items for _ in range(2)]))

    def backward(self, grads: Sequence[Tensor], kept: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Gradients of x, w and v."""
        device = self.table.ints.device
        x, g = self.pointers([t.x for t in self.items]), self.pointers(grads)
        parts = torch.empty(4 * self.sum_programs, device=device)
        shares = torch.empty(8 * self.rows, device=device)
        counters = torch.empty(len(self.items), dtype=torch.int32, device=device)
        to_weights = torch.empty(len(self.items), 2, 4, device=device)
        to_x, d = self.empty()
        ints, floats, (of_sums, of_maps), aligned = self.table
        known = _in_a_row(kept)
        kernels = _kernels()
        kernels.gradient_sums[(self.sum_programs,)](
            *g,
            *x,
            known,
            parts,
            counters,
            ints,
            of_sums,
            SLOTS=self.slots,
            ALIGNED=aligned,
            BLOCK=_SUM_BLOCK // 4,
            num_warps=4,
        )
        kernels.input_gradient[(self.map_programs,)](
            *g, *x, *self.w, *self.v, *d, to_weights, known, parts, shares, counters, ints, floats, of_maps,
            SLOTS=self.slots, ALIGNED=aligned, BP=_PARTS, BLOCK=_MAP_BLOCK, BLOCKS=_MAP_BLOCKS, BR=32, num_warps=4,
        )  # fmt: skip
        halves = to_weights.view(-1, 4).unbind()
        return list(zip(to_x, halves[::2], halves[1::2], strict=True))


def _in_a_row(kept: Sequence[Tensor]) -> Tensor:
    """Statistics and grids as they lie in one memory after the forward pass, or copied to be so."""
    at = kept[0].data_ptr()
    for t in kept:
        if t.data_ptr() != at or not t.is_contiguous():
            return torch.cat([t.reshape(-1, 4) for t in kept])
        at += 4 * t.numel()
    return kept[0]


def _launches(items: Sequence[DLSItem]) -> list[list[int]]:
    """Items of each launch. Rows that can be read four values at a time are never mixed with others: sums over them are
    taken in another order, and an item has to have the same bits whatever it shares a launch with."""
    if len(items) == 1:
        return [[0]]
    groups: dict[tuple[bool, bool], list[int]] = {}
    for i, item in enumerate(items):
        side = len(items) > SLOTS and item.x.is_contiguous()
        groups.setdefault((side, (item.x.numel() // item.rows) % 4 == 0), []).append(i)
    found = []
    for (side, _), members in groups.items():
        most = len(members) if side else SLOTS
        found += [members[i : i + most] for i in range(0, len(members), most)]
    return found


def forward_items(items: Sequence[DLSItem]) -> tuple[list[Tensor], list[Tensor]]:
    """See ``reference.forward_items``; x float32 without gaps in memory."""
    if any(item.x.numel() == 0 for item in items):
        return reference.forward_items(items)
    return _forward(items[0].x, items)


@on_its_device
def _forward(_: Tensor, items: Sequence[DLSItem]) -> tuple[list[Tensor], list[Tensor]]:
    outs: list = [None] * len(items)
    kept: list = [None] * len(items)
    for chosen in _launches(items):
        found, left = _Launch([items[i] for i in chosen]).forward()
        for k, i in enumerate(chosen):
            outs[i], kept[i] = found[k], left[2 * k : 2 * k + 2]
    return outs, list(itertools.chain.from_iterable(kept))


def backward_items(
    grads: Sequence[Tensor], items: Sequence[DLSItem], kept: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See ``reference.backward_items``; gradients lie in memory as their x does."""
    if any(item.x.numel() == 0 for item in items):
        return reference.backward_items(grads, items, kept)
    return _backward(items[0].x, grads, items, kept)


@on_its_device
def _backward(_: Tensor, grads, items, kept) -> list[tuple[Tensor, Tensor, Tensor]]:
    found: list = [None] * len(items)
    for chosen in _launches(items):
        left = [t for i in chosen for t in kept[2 * i : 2 * i + 2]]
        results = _Launch([items[i] for i in chosen]).backward([grads[i] for i in chosen], left)
        for i, result in zip(chosen, results, strict=True):
            found[i] = result
    return found
