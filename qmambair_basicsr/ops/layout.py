"""Memory layout: elementwise operators keep channels_last maps as they are instead of copying them."""

from __future__ import annotations

from torch import Tensor

TO_LAST = (0, 2, 3, 1)
FROM_LAST = (0, 3, 1, 2)


def stored_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is (B, C, H, W) in channels_last memory, so that ``x.permute(TO_LAST)`` is contiguous.

    False for maps that are contiguous as they are.
    """
    return x.ndim == 4 and not x.is_contiguous() and x.permute(TO_LAST).is_contiguous()
