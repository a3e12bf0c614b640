"""Memory layout: elementwise operators keep channels_last maps as they are instead of copying them."""

from __future__ import annotations

from torch import Tensor

TO_LAST = (0, 2, 3, 1)
FROM_LAST = (0, 3, 1, 2)


def stored_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is (B, C, H, W) with its channels side by side in memory: channels_last, or a slice of such a map.

    ``x.permute(TO_LAST)`` is then the order to compute in: contiguous, or copied row by row. False for maps that are
    contiguous as they are.
    """
    return x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
