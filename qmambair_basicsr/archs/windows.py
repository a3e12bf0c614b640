"""Index plans of (shifted) window attention, computed once per image size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..ops.backend import export_target
from ..ops.kept import kept
from ..ops.permutation import inverted
from ..ops.window_attention import MASKED  # added to attention logits of pairs that the cyclic shift brought together


@dataclass(frozen=True)
class WindowPlan:
    """How to cut an H x W grid of tokens into windows of ``window * window`` tokens.

    Windows are listed by the kind of mask they need (inside, right edge, bottom edge, corner), so that one
    attention call serves all windows of a kind without repeating the mask for each of them.

    Attributes:
        order: Raster index of the tokens, window after window, (H * W).
        windows: The same, a row per window, (windows, window**2).
        inverse: Inverse permutation, (H * W).
        kinds: (number of windows, mask (window**2, window**2) or None) for each kind, in order.
        regions: The masks once more, one number per token: pairs with different numbers are masked. (windows,
            window**2) int32; None without shift, and in a plan for open sides.
    """

    order: Tensor
    windows: Tensor
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


def mirror_index(size: int, padded: int, device: torch.device | None = None) -> Tensor:
    """Source index of each of ``padded`` positions under mirror padding with the edge repeated (abc -> abccba...)."""
    index = torch.arange(padded, device=device) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def mirror_pad(x: Tensor, window: int) -> Tensor:
    """Mirror-pad x (B, C, H, W) right and below to multiples of the window."""
    for dim in (2, 3):
        size = x.shape[dim]
        if isinstance(size, int):
            padded = -(-size // window) * window
            if padded != size:
                x = x.index_select(dim, mirror_index(size, padded, x.device))
        else:  # exported with open sides
            period = _as_tensor(2 * size, x.device)
            index = torch.remainder(torch.arange((size + window - 1) // window * window, device=x.device), period)
            x = x.index_select(dim, torch.minimum(index, period - 1 - index))
    return x


def _build_plan(height: int, width: int, window: int, shift: int) -> tuple:
    """The fields of a plan as NumPy arrays: what is made of torch's tensors while the exporter traces has no values."""
    rows, columns = height // window, width // window
    raster = np.roll(np.arange(height * width).reshape(height, width), (-shift, -shift), (0, 1))
    tokens = raster.reshape(rows, window, columns, window).swapaxes(1, 2).reshape(rows * columns, window * window)
    if shift == 0:
        order, kinds, regions = tokens.flatten(), ((rows * columns, None),), None
    else:
        # of the shifted grid, the last window of a row (column) joins both borders of the image, cut at -shift
        kind = np.zeros((rows, columns), np.int64)
        kind[:, -1] += 1
        kind[-1, :] += 2
        kind = kind.flatten()
        wrapped = np.arange(window) >= window - shift
        right = np.broadcast_to(wrapped, (window, window)).flatten().astype(np.int32)
        bottom = np.broadcast_to(wrapped[:, None], (window, window)).flatten().astype(np.int32)
        parts = np.stack((np.zeros_like(right), right, bottom, right + 2 * bottom))  # of a window, by kind
        masks = np.where(parts[:, :, None] != parts[:, None], np.float32(MASKED), np.float32(0))
        order = tokens[np.argsort(kind, kind="stable")].flatten()
        counts = np.bincount(kind, minlength=4)
        kinds = tuple((int(n), mask if i else None) for i, (n, mask) in enumerate(zip(counts, masks, strict=True)) if n)
        regions = parts.repeat(counts, 0)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(order.size)
    return order, inverse, kinds, regions


def _as_plan(arrays: tuple, window: int, device: torch.device) -> WindowPlan:
    def tensor(array: np.ndarray | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array).to(device)

    order, inverse, kinds, regions = arrays
    masks = tuple((count, tensor(mask)) for count, mask in kinds)
    windows = tensor(order.reshape(-1, window * window))
    return WindowPlan(windows.flatten(), windows, tensor(inverse), masks, tensor(regions))


@kept(32)
def _kept_plan(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowPlan:
    with torch.inference_mode(False):  # a plan made while testing must stay usable in training
        return _as_plan(_build_plan(height, width, window, shift), window, device)


def window_plan(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowPlan:
    """Plan for a grid of ``height`` x ``width`` tokens (multiples of ``window``), kept for the last 32 sizes.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        window: Side of a window.
        shift: Cyclic shift up and left before cutting, 0 <= shift < window.
        device: Where the tensors live.
    """
    if export_target() is None:
        return _kept_plan(height, width, window, shift, device)
    if isinstance(height, int) and isinstance(width, int):
        return _as_plan(_build_plan(height, width, window, shift), window, device)  # a traced tensor must not be kept
    return open_window_plan(height, width, window, shift, device)


def open_window_plan(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowPlan:
    """:func:`window_plan` for sides that are known only when an exported network runs.

    All windows are of one kind with a mask of its own for each, (windows, 1, T, T): the number of windows of each kind
    is not known.
    """
    rows, columns = height // window, width // window

    def cut(grid: Tensor) -> Tensor:
        grid = grid.view(rows, window, columns, window).transpose(1, 2)
        return grid.reshape(rows * columns, window * window)

    raster = torch.arange(height * width, device=device).view(height, width)
    mask = None
    if shift:
        raster = torch.cat((raster[shift:], raster[:shift]), 0)
        raster = torch.cat((raster[:, shift:], raster[:, :shift]), 1)
        below = (torch.arange(height, device=device) >= _as_tensor(height - shift, device)).long()
        right = (torch.arange(width, device=device) >= _as_tensor(width - shift, device)).long()
        side = cut(2 * below.unsqueeze(1) + right.unsqueeze(0))
        mask = ((side.unsqueeze(1) != side.unsqueeze(2)).float() * MASKED).unsqueeze(1)
    windows = cut(raster)
    order = windows.flatten()
    return WindowPlan(order, windows, inverted(order), ((rows * columns, mask),), None)


def _as_tensor(value: int, device: torch.device) -> Tensor:
    """A size as a tensor (1,): the exporter compares and divides by tensors only where the size is not known."""
    return torch.full((1,), value, dtype=torch.int64, device=device)
