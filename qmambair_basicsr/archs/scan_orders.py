"""Scan orders of the compared networks: in which sequence each direction visits the pixels of a map.

Sources: MaIR (arXiv:2412.20066, nested S-shaped stripes with shifts), EAMamba (arXiv:2506.22246, all-around scans).
VmambaIR scans rows and columns, which have names (``ops.ss2d_scan``); so does its channel scan, on a map of height 1.

A pattern is a function that gives the step at which each pixel is visited, (H, W) int64. That has a closed form, so it
can also be part of an exported graph whose sides are open; the order itself is its inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..ops.backend import export_target
from ..ops.kept import kept
from ..ops.permutation import inverted

DIAGONAL, RASTER, ZIGZAG = "diagonal", None, "zigzag"
SCAN_TYPES = (DIAGONAL, ZIGZAG, RASTER)


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column numbers, (H, 1) and (1, W)."""
    return torch.arange(height, device=device).unsqueeze(1), torch.arange(width, device=device).unsqueeze(0)


def nested_s_steps(height: int, width: int, device: torch.device, *, scan_len: int, shift: int) -> Tensor:
    """MaIR: stripes of ``scan_len`` columns from left to right, each walked in S form, down and up in turns.

    Within a stripe every second row of the walk runs from right to left. For an even number of rows a stripe ends below
    or above the far side of the next one, ``scan_len`` columns away: so it is in the authors' code, and in the weights.

    Args:
        height, width, device: Of the map.
        scan_len: Columns of a stripe; the last stripe may have fewer.
        shift: Columns of the first stripe; 0: as many as the others.

    Returns:
        (H, W) int64, the step at which a pixel is visited.
    """
    row, column = _grid(height, width, device)
    lead = shift or scan_len  # columns of the first stripe
    stripe = (column - lead + scan_len).div(scan_len, rounding_mode="floor").clamp(min=0)
    start = (stripe * scan_len + lead - scan_len).clamp(min=0)
    end = (stripe * scan_len + lead).clamp(max=width)
    down = stripe % 2 == 0
    walked = torch.where(down, row, height - 1 - row)  # rows of the stripe before this one
    ahead = walked % 2 == 0
    return height * start + walked * (end - start) + torch.where(ahead, column - start, end - 1 - column)


def raster_steps(height: int, width: int, device: torch.device) -> Tensor:
    """Row by row."""
    row, column = _grid(height, width, device)
    return row * width + column


def _before_diagonal(number: Tensor, height: int, width: int) -> Tensor:
    """How many pixels lie on the anti-diagonals (row + column constant) before this one."""

    def triangle(n: Tensor) -> Tensor:
        n = n.clamp(min=0)
        return n * (n + 1) // 2

    return triangle(number) - triangle(number - height) - triangle(number - width)


def diagonal_steps(height: int, width: int, device: torch.device, *, turning: bool = False) -> Tensor:
    """EAMamba: anti-diagonals one after the other, each from its top right end down.

    Args:
        height, width, device: Of the map.
        turning: Every second diagonal runs upwards: a zigzag. Which ones depends on the parity of the height, as in the
            authors' code: the first does where it is even.
    """
    row, column = _grid(height, width, device)
    number = row + column
    first = (number - (width - 1)).clamp(min=0)  # row of the diagonal's top right end
    last = number.clamp(max=height - 1)
    place = torch.where((number + height) % 2 == 0, last - row, row - first) if turning else row - first
    return _before_diagonal(number, height, width) + place


def _order(steps: Tensor) -> Tensor:
    """(H, W) steps -> (H * W) raster positions in the order of the visit."""
    return inverted(steps.flatten())


def _transposed(pattern: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The pattern of the transposed map: rows take the part of columns."""
    return lambda height, width, device: pattern(width, height, device).t()


def _mirrored(pattern: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The pattern of the map mirrored left to right."""
    return lambda height, width, device: pattern(height, width, device).flip(1)


def _with_rotations(patterns: list[Callable[..., Tensor]], height: int, width: int, device: torch.device) -> Tensor:
    """Two orders for each pattern: its own, and that of the map turned by 180 degrees (no reversal in time)."""
    orders = []
    for pattern in patterns:
        order = _order(pattern(height, width, device))
        orders += [order, height * width - 1 - order]
    return torch.stack(orders)


def _mair(height: int, width: int, device: torch.device, scan_len: int, shift: int) -> Tensor:
    pattern = partial(nested_s_steps, scan_len=scan_len, shift=shift)
    return _with_rotations([pattern, _transposed(pattern)], height, width, device)


def _eamamba(height: int, width: int, device: torch.device, scan_type: str | None, count: int) -> Tensor:
    raster = [raster_steps, _transposed(raster_steps)]
    if scan_type == RASTER:
        patterns = raster
    else:
        pattern = partial(diagonal_steps, turning=scan_type == ZIGZAG)
        patterns = [pattern, _mirrored(pattern), *raster]
    return _with_rotations(patterns[: (count + 1) // 2], height, width, device)[:count]


@kept(64)
def _kept(make: Callable[..., Tensor], height: int, width: int, device: torch.device, *options) -> Tensor:
    with torch.inference_mode(False):  # an order made while testing must stay usable in training
        return make(height, width, device, *options)


def _made(make: Callable[..., Tensor], height: int, width: int, device: torch.device, *options) -> Tensor:
    """An order, kept for the next map of its size; one that is traced has no values and is made anew."""
    if export_target() is not None or torch.compiler.is_compiling():
        return make(height, width, device, *options)
    return _kept(make, height, width, device, *options)


def mair_order(height: int, width: int, device: torch.device, *, scan_len: int, shift: int = 0) -> Tensor:
    """MaIR's four directions: stripes of columns, the same on the map turned by 180 degrees, and both with stripes of rows.

    Args:
        height, width, device: Of the map.
        scan_len: Columns (rows) of a stripe.
        shift: Columns (rows) of the first stripe; 0: as many as the others.

    Returns:
        (4, H * W) int64, an ``order`` of ``ops.ss2d_scan``; the same tensor for every map of this size.
    """
    return _made(_mair, height, width, device, scan_len, shift)


def eamamba_order(height: int, width: int, device: torch.device, *, scan_type: str | None, count: int) -> Tensor:
    """EAMamba's heads: a pattern, the pattern of the mirrored map, rows and columns, each also on the map turned by 180 degrees.

    Args:
        height, width, device: Of the map.
        scan_type: ``diagonal``, ``zigzag``, or None: rows and columns alone.
        count: K, heads: 1, 2, 4 or, not without a pattern, 8.

    Returns:
        (K, H * W) int64, an ``order`` of ``ops.ss2d_scan``; the same tensor for every map of this size.

    Raises:
        ValueError: Another scan_type or count. The authors' ``zorder`` depends on how their sort treats equal keys.
    """
    counts = (1, 2, 4) if scan_type == RASTER else (2, 4, 8)
    if scan_type not in SCAN_TYPES or count not in counts:
        raise ValueError(
            f"scan_type must be one of {', '.join(map(repr, SCAN_TYPES))}, with 2, 4 or 8 heads (None: 1, 2 or 4); "
            f"got {scan_type!r} and {count}"
        )
    return _made(_eamamba, height, width, device, scan_type, count)
