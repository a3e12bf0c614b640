"""``rfa`` on GPUs in Triton: one pass forward; backward one pass that leaves per-block sums, added in a fixed order."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..triton_support import DEVICES, is_available, on_its_device
from .item import RFAItem, backward_one, forward_one
from .reference import OUTER_SLOPE

__all__ = ["DEVICES", "backward_items", "forward_items", "is_available"]

_BLOCK = 1024  # forward; backward takes four times as many, for fewer partial sums


@functools.cache
def _kernels():
    from . import triton_kernels  # importing it needs Triton

    return triton_kernels


def _search_table(borders: Tensor) -> tuple[Tensor, int]:
    """Suffix minima of the borders (sorted; v exceeds some border from i on iff it exceeds their minimum), padded with
    infinity to 2^levels - 1, and the levels."""
    levels = borders.numel().bit_length()
    minima = borders.flip(0).cummin(0).values.flip(0)
    return F.pad(minima, (0, 2**levels - 1 - borders.numel()), value=float("inf")), levels


def _midpoints(thresholds: Tensor) -> tuple[Tensor, int]:
    return _search_table((thresholds[:-1] + thresholds[1:]) / 2)


@on_its_device
def forward(w: Tensor, scale: Tensor, offset: Tensor, thresholds: Tensor, qmin: int) -> Tensor:
    """As ``reference.forward``: the same bits for the same inputs; w contiguous float32."""
    out = torch.empty_like(w)
    midpoints, levels = _midpoints(thresholds)
    if w.numel():
        _kernels().rfa_forward[(-(-w.numel() // _BLOCK),)](
            w, scale, offset, midpoints, out, w.numel(), float(qmin), float(qmin + thresholds.numel() - 1),
            LEVELS=levels, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return out


@on_its_device
def backward(
    grad: Tensor, w: Tensor, scale: Tensor, offset: Tensor, thresholds: Tensor, qmin: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.backward``; results do not vary from run to run."""
    count = thresholds.numel()
    bins = count + 1
    gap = thresholds[1:] - thresholds[:-1]
    outer = thresholds.new_full((1,), OUTER_SLOPE)
    slopes = torch.cat((outer, 1 / gap, outer))
    starts = torch.cat((thresholds[:1], thresholds))
    midpoints, levels = _midpoints(thresholds)
    borders, border_levels = _search_table(thresholds)
    dw = torch.empty_like(w)
    blocks = -(-w.numel() // (4 * _BLOCK))
    sums = torch.empty(blocks, 2 + 2 * bins, dtype=torch.float32, device=w.device)
    if w.numel():
        _kernels().rfa_backward[(blocks,)](
            grad, w, scale, offset, midpoints, borders, slopes, starts, dw, sums, w.numel(), bins, float(qmin),
            float(qmin + count - 1), LEVELS=levels, BORDER_LEVELS=border_levels, BLOCK=4 * _BLOCK, num_warps=8,
        )  # fmt: skip
    sums = sums.sum(0, dtype=torch.float64).to(w.dtype)
    doffset, dscale = sums[:2]
    total, moved = sums[2:].view(2, bins)
    dthresholds = torch.zeros_like(thresholds)
    dthresholds[0] = -OUTER_SLOPE * total[0]
    dthresholds[-1] = -OUTER_SLOPE * total[-1]
    dthresholds[:-1] -= (total[1:-1] - moved[1:-1]) / gap
    dthresholds[1:] -= moved[1:-1] / gap
    return dw, dscale.reshape(scale.shape), doffset.reshape(offset.shape), dthresholds * scale


def forward_items(items: Sequence[RFAItem]) -> list[Tensor]:
    """Every item quantized, one after the other."""
    return [forward_one(sys.modules[__name__], item) for item in items]


def backward_items(grads: Sequence[Tensor], items: Sequence[RFAItem]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Gradients of w, scale, offset and thresholds of every item."""
    return [backward_one(sys.modules[__name__], grad, item) for grad, item in zip(grads, items, strict=True)]
