"""Index plans of (shifted) window attention, computed once per image size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..ops.window_attention import MASKED  # added to attention logits of pairs that the cyclic shift brought together


@dataclass(frozen=True)
class WindowPlan:
    """How to cut an H x W grid of tokens into windows of ``window * window`` tokens.

    Windows are listed by the kind of mask they need (inside, right edge, bottom edge, corner), so that one
    attention call serves all windows of a kind without repeating the mask for each of them.

    Attributes:
        order: Raster index of the tokens, window after window, (H * W).
        inverse: Inverse permutation, (H * W).
        kinds: (number of windows, mask (window**2, window**2) or None) for each kind, in order.
        regions: The masks once more, one number per token: pairs with different numbers are masked. (windows,
            window**2) int32; None without shift.
    """

    order: Tensor
    inverse: Tensor
    kinds: tuple[tuple[int, Tensor | None], ...]
    regions: Tensor | None


def relative_position_index(window: int) -> Tensor:
    """Row of the relative-position table for every pair of tokens of a window, (window**2, window**2) int64."""
    position = torch.arange(window)
    y, x = (grid.flatten() for grid in torch.meshgrid(position, position, indexing="ij"))
    dy = y.unsqueeze(1) - y.unsqueeze(0) + window - 1
    dx = x.unsqueeze(1) - x.unsqueeze(0) + window - 1
    return dy * (2 * window - 1) + dx


def mirror_index(size: int, padded: int) -> Tensor:
    """Source index of each of ``padded`` positions under mirror padding with the edge repeated (abc -> abccba...)."""
    index = torch.arange(padded) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _build_plan(height: int, width: int, window: int, shift: int) -> WindowPlan:
    rows, columns = height // window, width // window
    raster = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    tokens = raster.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window * window)
    if shift == 0:
        order, kinds, regions = tokens.flatten(), ((rows * columns, None),), None
    else:
        # of the shifted grid, the last window of a row (column) joins both borders of the image, cut at -shift
        kind = torch.zeros(rows, columns, dtype=torch.int64)
        kind[:, -1] += 1
        kind[-1, :] += 2
        kind = kind.flatten()
        wrapped = torch.arange(window) >= window - shift
        right = wrapped.expand(window, window).flatten().long()
        bottom = wrapped.unsqueeze(1).expand(window, window).flatten().long()
        parts = torch.stack((torch.zeros_like(right), right, bottom, right + 2 * bottom)).int()  # of a window, by kind
        apart = parts.unsqueeze(1) != parts.unsqueeze(2)
        masks = [None, *torch.zeros(apart.shape).masked_fill_(apart, MASKED)[1:]]
        order = tokens[torch.sort(kind, stable=True).indices].flatten()
        counts = torch.bincount(kind, minlength=4).tolist()
        kinds = tuple((count, mask) for count, mask in zip(counts, masks, strict=True) if count)
        regions = parts.repeat_interleave(torch.tensor(counts), 0)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    return WindowPlan(order, inverse, kinds, regions)


@lru_cache(maxsize=32)
def window_plan(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowPlan:
    """Plan for a grid of ``height`` x ``width`` tokens (multiples of ``window``), kept for the last 32 sizes.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        window: Side of a window.
        shift: Cyclic shift up and left before cutting, 0 <= shift < window.
        device: Where the tensors live.
    """
    with torch.inference_mode(False):  # a plan made while testing must stay usable in training
        plan = _build_plan(height, width, window, shift)
        kinds = tuple((count, None if mask is None else mask.to(device)) for count, mask in plan.kinds)
        regions = None if plan.regions is None else plan.regions.to(device)
        return WindowPlan(plan.order.to(device), plan.inverse.to(device), kinds, regions)
