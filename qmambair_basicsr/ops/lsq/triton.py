"""``lsq`` on GPUs in Triton: one pass forward, one pass backward with sums through partial buffers in a fixed order."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ..triton_support import DEVICES, is_available, next_power_of_2, on_its_device
from .item import LSQItem, backward_one, forward_one

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

_BLOCK = 1024
_PARTS = 2048  # programs per launch that leave a partial sum, at most about


@functools.cache
def _kernels():
    from . import triton_kernels  # importing it needs Triton

    return triton_kernels


def _layout(x: Tensor, scale: Tensor, offset: Tensor | None, dim: int | None) -> tuple[int, int]:
    """x as (outer, C, inner): C and inner; C = 1 when no parameter varies."""
    if scale.numel() == 1 and (offset is None or offset.numel() == 1):
        return 1, x.numel()
    return x.shape[dim], math.prod(x.shape[dim:][1:])


def _flags(scale: Tensor, offset: Tensor | None) -> dict[str, bool]:
    return {
        "PER_SCALE": scale.numel() > 1,
        "PER_OFFSET": offset is not None and offset.numel() > 1,
        "HAS_OFFSET": offset is not None,
    }


@on_its_device
def forward(x: Tensor, scale: Tensor, offset: Tensor | None, qmin: int, qmax: int, dim: int | None) -> Tensor:
    """As ``reference.forward``: the same bits for the same inputs; x contiguous float32."""
    out = torch.empty_like(x)
    channels, inner = _layout(x, scale, offset, dim)
    if x.numel():
        _kernels().lsq_forward[(-(-x.numel() // _BLOCK),)](
            x, scale, scale if offset is None else offset, out, x.numel(), channels, inner, float(qmin), float(qmax),
            **_flags(scale, offset), BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return out


@on_its_device
def backward(
    grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, qmin: int, qmax: int, dim: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``reference.backward``; results do not vary from run to run."""
    dx = torch.empty_like(x)
    channels, inner = _layout(x, scale, offset, dim)
    count = x.numel() // channels
    if inner < 32:  # channels last: neighbouring channels are neighbours in memory
        block_c = min(64, next_power_of_2(channels))
    else:
        block_c = min(max(1, _BLOCK // next_power_of_2(max(count, 1))), next_power_of_2(channels))
    block_e = _BLOCK // block_c
    groups, blocks = -(-channels // block_c), -(-count // block_e)
    per_part = max(1, -(-blocks * groups // _PARTS))
    parts = -(-blocks // per_part)
    sums = torch.empty(2, channels, parts, dtype=torch.float32, device=x.device)
    if x.numel():
        _kernels().lsq_backward[(parts, groups)](
            grad, x, scale, scale if offset is None else offset, dx, sums, channels, inner, count,
            per_part * block_e, float(qmin), float(qmax), **_flags(scale, offset), BC=block_c, BE=block_e, num_warps=4,
        )  # fmt: skip
    sums = sums.sum(2, dtype=torch.float64)

    def collect(per_channel, parameter):
        total = per_channel if parameter.numel() > 1 else per_channel.sum()
        return total.reshape(parameter.shape).to(parameter.dtype)

    return dx, collect(sums[0], scale), None if offset is None else collect(sums[1], offset)


def forward_items(items: Sequence[LSQItem]) -> list[Tensor]:
    """Every item quantized; x contiguous or channels_last."""
    return [forward_one(sys.modules[__name__], item) for item in items]


def backward_items(grads: Sequence[Tensor], items: Sequence[LSQItem]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Gradients of x, scale and offset of every item."""
    return [backward_one(sys.modules[__name__], grad, item) for grad, item in zip(grads, items, strict=True)]
