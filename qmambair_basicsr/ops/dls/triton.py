"""``dls`` on GPUs in Triton: two passes over x forward and backward, with a one-program step per row between them.

Sums go through partial buffers that are merged in float64 and in a fixed order: results do not vary from run to run.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ..triton_support import DEVICES, is_available, next_power_of_2, on_its_device
from .item import DLSItem, backward_each, forward_each
from .reference import ABSOLUTE_FLOOR, RELATIVE_FLOOR

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

_SUM_BLOCK = 4096  # values a program reduces at a time
_MAP_BLOCK = 1024  # values a program maps
_PARTS = 1024  # parts of a row, at most


@functools.cache
def _kernels():
    from . import triton_kernels  # importing it needs Triton

    return triton_kernels


def _split(values: int) -> tuple[int, int]:
    """Values per part and number of parts of a row."""
    blocks = -(-values // _SUM_BLOCK)
    per_part = -(-blocks // _PARTS)
    return per_part * _SUM_BLOCK, -(-blocks // per_part)


@on_its_device
def forward(x: Tensor, w: Tensor, v: Tensor, qmin: int, qmax: int, cap_share: float) -> tuple[Tensor, Tensor, Tensor]:
    """As ``reference.forward``: quantized x, statistics (G, 4), grid (G, 4); x contiguous float32."""
    kernels = _kernels()
    groups, values = x.shape
    part, parts = _split(values)
    partial = torch.empty(groups, 4, parts, dtype=torch.float32, device=x.device)
    stats, grid = (torch.empty(groups, 4, dtype=torch.float32, device=x.device) for _ in range(2))
    out = torch.empty_like(x)
    kernels.part_statistics[(parts, groups)](x, partial, values, part, BLOCK=_SUM_BLOCK, num_warps=8)
    kernels.make_grid[(groups,)](
        partial, w.contiguous(), v.contiguous(), stats, grid, values, part, parts, float(qmin), float(qmax), cap_share,
        RELATIVE_FLOOR, ABSOLUTE_FLOOR, BP=next_power_of_2(parts), num_warps=4,
    )  # fmt: skip
    kernels.quantize[(-(-values // _MAP_BLOCK), groups)](x, grid, out, values, BLOCK=_MAP_BLOCK, num_warps=4)
    return out, stats, grid


@on_its_device
def backward(
    grad: Tensor, x: Tensor, w: Tensor, v: Tensor, stats: Tensor, used: Tensor, cap_share: float, grad_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``reference.backward``: gradients of x, w and v."""
    kernels = _kernels()
    groups, values = x.shape
    part, parts = _split(values)
    partial = torch.empty(groups, 4, parts, dtype=torch.float32, device=x.device)
    terms = torch.empty(groups, 4, dtype=torch.float32, device=x.device)
    weights = torch.empty(groups, 8, dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x)
    kernels.part_gradients[(parts, groups)](
        grad, x, used, stats, partial, values, part, BLOCK=_SUM_BLOCK // 4, num_warps=4
    )
    kernels.grid_gradient[(groups,)](
        partial, w.contiguous(), v.contiguous(), stats, used, terms, weights, values, parts, cap_share,
        RELATIVE_FLOOR, ABSOLUTE_FLOOR, grad_scale, BP=next_power_of_2(parts), num_warps=4,
    )  # fmt: skip
    kernels.input_gradient[(-(-values // _MAP_BLOCK), groups)](
        grad, x, used, stats, terms, dx, values, BLOCK=_MAP_BLOCK, num_warps=4
    )
    dw, dv = weights.sum(0).to(w.dtype).split(4)
    return dx, dw, dv


def forward_items(items: Sequence[DLSItem]) -> tuple[list[Tensor], list[Tensor]]:
    """See ``item.forward_each``."""
    return forward_each(sys.modules[__name__], items)


def backward_items(
    grads: Sequence[Tensor], items: Sequence[DLSItem], kept: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """See ``item.backward_each``."""
    return backward_each(sys.modules[__name__], grads, items, kept)
