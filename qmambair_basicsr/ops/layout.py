"""Memory layout: elementwise operators keep channels_last maps as they are instead of copying them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TO_LAST = (0, 2, 3, 1)
FROM_LAST = (0, 3, 1, 2)
_FEW = 8


def stored_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is (B, C, H, W) with its channels side by side in memory: channels_last, or a slice of such a map.

    ``x.permute(TO_LAST)`` is then the order to compute in: contiguous, or copied row by row. False for maps that are
    contiguous as they are.
    """
    return x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def gapless(x: Tensor) -> Tensor:
    """``x``, or a copy, without gaps in memory and with dimension 0 outermost: contiguous or channels_last."""
    if x.is_contiguous():
        return x
    if not stored_channels_last(x):
        return x.contiguous()
    last = torch.channels_last
    return x if x.is_contiguous(memory_format=last) else x.contiguous(memory_format=last)


def alike(t: Tensor, x: Tensor) -> Tensor:
    """``t``, or a copy of it, in the order in memory that ``x`` has; both of one shape."""
    return t if t.stride() == x.stride() else torch.empty_like(x, dtype=t.dtype).copy_(t)


def empty_for(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialised memory of the shape, type and order of each of some tensors without gaps.

    A few are allocated one by one, as they may be large and each is to be freed when nobody needs it; many together.
    """
    if len(tensors) > _FEW and all(t.is_contiguous() for t in tensors):
        return list(empty_together(tensors))
    return [torch.empty_like(t) for t in tensors]  # in the order of memory of each, as none has gaps


def empty_together(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Uninitialised contiguous tensors of these shapes, of the first one's type, from a single allocation."""
    first = tensors[0]
    sizes = [t.numel() for t in tensors]
    memory = first.new_empty(sum(sizes))
    if all(t.ndim == 1 for t in tensors):
        return torch.split_with_sizes(memory, sizes)
    return torch._utils._unflatten_dense_tensors(memory, tensors)
