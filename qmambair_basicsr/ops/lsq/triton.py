"""``lsq`` on GPUs in Triton: one launch forward and one backward, for one tensor or for many.

The backward launch leaves partial sums, which the last program of a tensor adds up in a fixed order: results do not vary
from run to run, nor with the tensors that share a launch. Many tensors are copied side by side first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import empty_together
from ..learned import step_gradient, step_in_use
from ..triton_support import DEVICES, is_available, next_power_of_2, on_its_device
from ..triton_tables import SLOTS, remembered, side_by_side, table
from .item import LSQItem

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

_BLOCK = 1024
_PARTS = 1024  # partial sums of a tensor with one step, at most
_ROW_BLOCK, _ROW_PART = 256, 4096  # where each row has its own
_CHANNELS_PARTS = 2048  # programs per launch that leave a partial sum, at most about


@functools.cache
def _kernels():
    from . import triton_channels, triton_kernels  # importing them needs Triton

    return triton_kernels, triton_channels


def _flags(item: LSQItem) -> tuple[bool, bool, bool]:
    """Whether steps vary, whether offsets vary, and whether there are any."""
    offset = item.offset
    return item.scale.numel() > 1, offset is not None and offset.numel() > 1, offset is not None


def _rows(item: LSQItem) -> tuple[int, int, int] | None:
    """x as rows with one step and offset: rows, values of a row, channels. None where rows would be too short for that."""
    x = item.x
    if not item.grouped:
        return 1, x.numel(), 1
    dim = item.dim % x.ndim
    cols = math.prod(x.shape[dim + 1 :])
    return None if cols < 32 or not x.is_contiguous() else (x.numel() // cols, cols, x.shape[dim])


def _split(rows: int, cols: int, channels: int, grouped: bool) -> tuple[int, int]:
    """Values per part and number of parts of a row."""
    if grouped:
        return _ROW_PART, -(-cols // _ROW_PART)
    blocks = -(-cols // _BLOCK)
    part = -(-blocks // _PARTS) * _BLOCK
    return part, -(-cols // part)


@remembered
def _table(items: tuple[tuple, ...], grouped: bool, device: torch.device):
    """The table of items (rows, cols, channels, numbers of scales and offsets, and four constants each)."""
    ints, counts = [], []
    start = first = scale = offset = sums = 0
    for rows, cols, channels, scales, offsets, *_ in items:
        part, parts = _split(rows, cols, channels, grouped)
        ints.append((start, rows, cols, part, parts, first, channels, scale, offset, sums))
        counts.append(rows * parts)
        start, first, sums = start + rows * cols, first + rows * parts, sums + 2 * rows * parts
        scale, offset = scale + scales, offset + offsets
    aligned = all(n % 4 == 0 for place in ints for n in (place[0], place[2]))
    return table(ints, [item[5:] for item in items], [counts], device, aligned)


class _Launch:
    """What the launches for some items with the same flags share."""

    def __init__(self, items: Sequence[LSQItem]):
        self.items, first = items, items[0]
        flags = _flags(first)
        grouped = flags[0] or flags[1]
        key = tuple(
            (
                *_rows(t),
                t.scale.numel(),
                0 if t.offset is None else t.offset.numel(),
                float(t.qmin),
                float(t.qmax),
                -1.0 if t.floor is None else t.floor,
                t.grad_scale,
            )
            for t in items
        )
        self.table = _table(key, grouped, first.x.device)
        self.constants = {
            "MANY": len(items) > 1,
            "PER_SCALE": flags[0],
            "PER_OFFSET": flags[1],
            "HAS_OFFSET": flags[2],
            "ALIGNED": self.table.aligned,
            "BLOCK": _ROW_BLOCK if grouped else _BLOCK,
            "num_warps": 4,
        }
        self.final = {"FC": 32, "FP": 32} if grouped else {"FC": 1, "FP": _PARTS}
        self.programs = self.table.tiles[0].numel()
        self.scale = side_by_side([t.scale for t in items])
        self.offset = side_by_side([t.offset for t in items]) if flags[2] else self.scale

    def forward(self, counter: Tensor) -> list[Tensor]:
        """Quantized tensors."""
        outs, x, out = self._maps([t.x for t in self.items])
        _kernels()[0].lsq_forward[(self.programs,)](
            x, self.scale, self.offset, out, counter, self.table.ints, self.table.floats, self.table.tiles[0],
            **self.constants,
        )  # fmt: skip
        return outs

    def backward(self, grads: Sequence[Tensor], counter: Tensor) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Gradients of x, scale and offset."""
        to_x, x, dx = self._maps([t.x for t in self.items])
        _, grad, _ = self._maps(grads, out=False)
        to_parameters = torch.empty(
            self.scale.numel() + (self.offset.numel() if self.constants["HAS_OFFSET"] else 0), device=x.device
        )
        d_scale, d_offset = to_parameters[: self.scale.numel()], to_parameters[self.scale.numel() :]
        sums = torch.empty(2 * self.programs, device=x.device)
        _kernels()[0].lsq_backward[(self.programs,)](
            grad, x, self.scale, self.offset, dx, d_scale, d_offset, sums, counter, self.table.ints,
            self.table.floats, self.table.tiles[0], **self.constants, **self.final,
        )  # fmt: skip
        d_scales = self._cut(d_scale, [t.scale for t in self.items])
        if not self.constants["HAS_OFFSET"]:
            return list(zip(to_x, d_scales, [None] * len(to_x), strict=True))
        return list(zip(to_x, d_scales, self._cut(d_offset, [t.offset for t in self.items]), strict=True))

    def _maps(self, tensors: Sequence[Tensor], out: bool = True) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
        """Results, their values side by side and those of the tensors; a single tensor and its result lie as they are."""
        if len(tensors) == 1:
            result = torch.empty_like(tensors[0]) if out else None
            return [result], tensors[0], result
        results = empty_together(tensors) if out else ()
        return results, side_by_side(tensors), results[0] if out else None

    @staticmethod
    def _cut(flat: Tensor, alike: Sequence[Tensor]) -> Sequence[Tensor]:
        return [flat.view(alike[0].shape)] if len(alike) == 1 else torch._utils._unflatten_dense_tensors(flat, alike)


def _calls(items: Sequence[LSQItem]) -> tuple[list[list[int]], list[int]]:
    """Items of each launch of the rows' kernels, and those for the others."""
    together: dict[tuple, list[int]] = {}
    apart, single = [], []
    for i, item in enumerate(items):
        if item.x.numel() == 0 or _rows(item) is None:
            apart.append(i)
        elif len(items) > SLOTS and item.x.is_contiguous():
            together.setdefault(_flags(item), []).append(i)
        else:
            single.append([i])
    return [*together.values(), *single], apart


def forward_items(items: Sequence[LSQItem]) -> tuple[list[Tensor], list[Tensor]]:
    """Every item quantized, x contiguous or channels_last; and a counter of the backward pass for each."""
    return _forward(items[0].x, items)


@on_its_device
def _forward(_: Tensor, items: Sequence[LSQItem]) -> tuple[list[Tensor], list[Tensor]]:
    outs: list[Tensor | None] = [None] * len(items)
    make = torch.zeros if len(items) > SLOTS else torch.empty  # kernels for one tensor set its counter to 0 themselves
    counters = list(make(len(items), dtype=torch.int32, device=items[0].x.device).split(1))
    together, apart = _calls(items)
    for chosen in together:
        found = _Launch([items[i] for i in chosen]).forward(counters[chosen[0]])
        for i, out in zip(chosen, found, strict=True):
            outs[i] = out
    for i in apart:
        outs[i] = _channels_forward(items[i])
    return outs, counters


def backward_items(
    grads: Sequence[Tensor], items: Sequence[LSQItem], counters: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Gradients of x, scale and offset of every item."""
    return _backward(items[0].x, grads, items, counters)


@on_its_device
def _backward(_: Tensor, grads, items, counters) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    found: list = [None] * len(items)
    together, apart = _calls(items)
    for chosen in together:
        counter = torch.zeros(len(chosen), dtype=torch.int32, device=grads[0].device) if len(chosen) > 1 else None
        launch = _Launch([items[i] for i in chosen])
        results = launch.backward([grads[i] for i in chosen], counters[chosen[0]] if counter is None else counter)
        for i, result in zip(chosen, results, strict=True):
            found[i] = result
    for i in apart:
        found[i] = _channels_backward(grads[i], items[i])
    return found


def _channels(item: LSQItem) -> tuple[int, int]:
    """x as (outer, C, inner): C and inner."""
    if not item.grouped:
        return 1, max(item.x.numel(), 1)
    dim = item.dim % item.x.ndim
    return item.x.shape[dim], math.prod(item.x.shape[dim + 1 :])


def _channels_forward(item: LSQItem) -> Tensor:
    """A tensor of any shape quantized."""
    x, offset, out = item.x, item.offset, torch.empty_like(item.x)
    scale = step_in_use(item.scale, item.floor)
    per_scale, per_offset, has_offset = _flags(item)
    if x.numel():
        _kernels()[1].lsq_forward[(-(-x.numel() // _BLOCK),)](
            x, scale, offset if has_offset else scale, out, x.numel(), *_channels(item), float(item.qmin),
            float(item.qmax), PER_SCALE=per_scale, PER_OFFSET=per_offset, HAS_OFFSET=has_offset, BLOCK=_BLOCK,
            num_warps=4,
        )  # fmt: skip
    return out


def _channels_backward(grad: Tensor, item: LSQItem) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a tensor of any shape, its step and its offset."""
    x, offset, dx = item.x, item.offset, torch.empty_like(item.x)
    scale = step_in_use(item.scale, item.floor)
    per_scale, per_offset, has_offset = _flags(item)
    channels, inner = _channels(item)
    count = x.numel() // channels
    block_c = min(64, next_power_of_2(channels))
    block_e = _BLOCK // block_c
    groups, blocks = -(-channels // block_c), -(-count // block_e)
    per_part = max(1, -(-blocks * groups // _CHANNELS_PARTS))
    parts = -(-blocks // per_part)
    sums = torch.empty(2, channels, parts, dtype=torch.float32, device=x.device)
    if x.numel():
        _kernels()[1].lsq_backward[(parts, groups)](
            grad, x, scale, offset if has_offset else scale, dx, sums, channels, inner, count, per_part * block_e,
            float(item.qmin), float(item.qmax), PER_SCALE=per_scale, PER_OFFSET=per_offset, HAS_OFFSET=has_offset,
            BC=block_c, BE=block_e, num_warps=4,
        )  # fmt: skip
    sums = sums.sum(2, dtype=torch.float64)

    def collect(per_channel, parameter):
        total = per_channel if parameter.numel() > 1 else per_channel.sum()
        return total.reshape(parameter.shape).to(parameter.dtype)

    d_scale = step_gradient(collect(sums[0], scale), item.scale, item.floor, item.grad_scale)
    return dx, d_scale, collect(sums[1], offset) if has_offset else None
