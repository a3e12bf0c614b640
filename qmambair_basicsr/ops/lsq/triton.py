"""``lsq`` on GPUs in Triton: one launch forward and one backward, for one tensor or for many.

The backward launch leaves partial sums, which the last program of a tensor adds up in a fixed order: results do not vary
from run to run, nor with the tensors that share a launch. Many tensors are copied side by side first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

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


class _Plan(NamedTuple):
    """Everything about the launches for some tensors but the tensors.

    Attributes:
        programs: of each launch.
        table: of the items: integers, numbers, item of every program.
        constants, final: of the kernels; ``final`` those of the backward launch alone.
    """

    programs: tuple[int]
    table: tuple[Tensor, Tensor, Tensor]
    constants: dict[str, int | bool]
    final: dict[str, int]


@remembered
def _plan(items: tuple[tuple, ...], flags: tuple[bool, bool, bool], device: torch.device) -> _Plan:
    """The plan for items (rows, cols, channels, numbers of scales and offsets, and four constants each)."""
    ints, counts, grouped = [], [], flags[0] or flags[1]
    start = first = scale = offset = sums = 0
    for rows, cols, channels, scales, offsets, *_ in items:
        part, parts = _split(rows, cols, channels, grouped)
        ints.append((start, rows, cols, part, parts, first, channels, scale, offset, sums))
        counts.append(rows * parts)
        start, first, sums = start + rows * cols, first + rows * parts, sums + 2 * rows * parts
        scale, offset = scale + scales, offset + offsets
    aligned = all(cols % 4 == 0 for _, cols, *_ in items)  # then all rows begin at multiples of four values
    made = table(ints, [item[5:] for item in items], [counts], device)
    constants = {"MANY": len(items) > 1, "PER_SCALE": flags[0], "PER_OFFSET": flags[1], "HAS_OFFSET": flags[2]}
    constants |= {"ALIGNED": aligned, "BLOCK": _ROW_BLOCK if grouped else _BLOCK, "num_warps": 4}
    final = {"FC": 32, "FP": 32} if grouped else {"FC": 1, "FP": _PARTS}
    return _Plan((first,), (made.ints, made.floats, made.tiles[0]), constants, constants | final)


def _plan_of(items: Sequence[LSQItem]) -> _Plan:
    key = tuple(
        (
            *_rows(t),
            t.scale.numel(),
            0 if t.offset is None else t.offset.numel(),
            t.qmin,
            t.qmax,
            -1.0 if t.floor is None else t.floor,
            t.grad_scale,
        )
        for t in items
    )
    return _plan(key, _flags(items[0]), items[0].x.device)


def _dense(item: LSQItem) -> tuple[Tensor, Tensor | None]:
    """Step and offset without gaps in memory."""
    return item.scale.contiguous(), None if item.offset is None else item.offset.contiguous()


def _forward_alone(item: LSQItem, counter: Tensor) -> Tensor:
    """A tensor quantized where it lies."""
    x, scale, offset = item.x, *_dense(item)
    out, plan = torch.empty_like(x), _plan_of((item,))
    _kernels()[0].lsq_forward[plan.programs](
        x, scale, scale if offset is None else offset, out, counter, *plan.table, **plan.constants
    )
    return out


def _backward_alone(grad: Tensor, item: LSQItem, counter: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a tensor, its step and its offset."""
    x, scale, offset = item.x, *_dense(item)
    dx, plan = torch.empty_like(x), _plan_of((item,))
    d_scale = torch.empty_like(scale)
    d_offset = None if offset is None else torch.empty_like(offset)
    sums = x.new_empty(2 * plan.programs[0])
    _kernels()[0].lsq_backward[plan.programs](
        grad, x, scale, scale if offset is None else offset, dx, d_scale, d_scale if d_offset is None else d_offset,
        sums, counter, *plan.table, **plan.final,
    )  # fmt: skip
    return dx, d_scale, d_offset


def _parameters(items: Sequence[LSQItem]) -> tuple[Tensor, Tensor]:
    scale = side_by_side([t.scale for t in items])
    return scale, scale if items[0].offset is None else side_by_side([t.offset for t in items])


def _forward_together(items: Sequence[LSQItem], counter: Tensor) -> Sequence[Tensor]:
    """Tensors that share their flags, quantized."""
    x = [t.x for t in items]
    outs, plan = empty_together(x), _plan_of(items)
    _kernels()[0].lsq_forward[plan.programs](
        side_by_side(x), *_parameters(items), outs[0], counter, *plan.table, **plan.constants
    )
    return outs


def _backward_together(grads: Sequence[Tensor], items: Sequence[LSQItem]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Gradients of tensors that share their flags, their steps and their offsets."""
    x, plan = [t.x for t in items], _plan_of(items)
    device, (scale, offset) = x[0].device, _parameters(items)
    to_x, d_scale, d_offset = empty_together(x), torch.empty_like(scale), torch.empty_like(offset)
    sums = torch.empty(2 * plan.programs[0], device=device)
    counters = torch.zeros(len(items), dtype=torch.int32, device=device)
    _kernels()[0].lsq_backward[plan.programs](
        side_by_side(grads), side_by_side(x), scale, offset, to_x[0], d_scale, d_offset, sums, counters, *plan.table,
        **plan.final,
    )  # fmt: skip
    split = torch._utils._unflatten_dense_tensors
    to_scale = split(d_scale, [t.scale for t in items])
    to_offset = [None] * len(items) if items[0].offset is None else split(d_offset, [t.offset for t in items])
    return list(zip(to_x, to_scale, to_offset, strict=True))


def _calls(items: Sequence[LSQItem]) -> tuple[list[list[int]], list[int]]:
    """Items that share a launch, and those for the other kernels.

    Rows that can be read four values at a time are not mixed with others: sums over them are taken in another order.
    """
    together: dict[tuple, list[int]] = {}
    apart = []
    for i, item in enumerate(items):
        rows = None if item.x.numel() == 0 else _rows(item)
        if rows is None:
            apart.append(i)
        else:
            shared = len(items) > SLOTS and item.x.is_contiguous()
            together.setdefault((*_flags(item), rows[1] % 4 == 0) if shared else (i,), []).append(i)
    return list(together.values()), apart


def forward_items(items: Sequence[LSQItem]) -> tuple[list[Tensor], list[Tensor]]:
    """Every item quantized, x contiguous or channels_last; and a counter of the backward pass for each."""
    return _forward(items[0].x, items)


@on_its_device
def _forward(_: Tensor, items: Sequence[LSQItem]) -> tuple[list[Tensor], list[Tensor]]:
    outs: list[Tensor | None] = [None] * len(items)
    make = torch.zeros if len(items) > SLOTS else torch.empty  # kernels for one tensor set its counter to 0 themselves
    counters = make(len(items), dtype=torch.int32, device=items[0].x.device)
    counters = [counters] if len(items) == 1 else list(counters.split(1))
    together, apart = _calls(items)
    for chosen in together:
        if len(chosen) == 1:
            outs[chosen[0]] = _forward_alone(items[chosen[0]], counters[chosen[0]])
            continue
        found = _forward_together([items[i] for i in chosen], counters[chosen[0]])
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
        if len(chosen) == 1:
            i = chosen[0]
            found[i] = _backward_alone(grads[i], items[i], counters[i])
            continue
        results = _backward_together([grads[i] for i in chosen], [items[i] for i in chosen])
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
