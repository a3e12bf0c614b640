"""In which order a direction visits the pixels: the four names, and lists of pixels that a caller gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..checks import permutation_fault

DIRECTIONS = ("row", "col", "row_rev", "col_rev")  # the index is the code that backends get
_MOST_PIXELS = 2**31 - 1  # backends get 32-bit positions

# order -> its version when it was checked, and the copy that backends get. A copy, so that a caller who writes to the
# tensor behind torch's back (through NumPy, say) cannot send a kernel outside its maps
_verified = WeakIdKeyDictionary()


def codes(directions: Sequence[str]) -> list[int]:
    """The codes of named directions.

    Raises:
        ValueError: an unknown name.
    """
    for name in directions:
        if name not in DIRECTIONS:
            raise ValueError(f"ss2d_scan: direction {name!r} is unknown; use {', '.join(DIRECTIONS)}")
    return [DIRECTIONS.index(name) for name in directions]


def named_order(
    directions: Sequence[str], height: int, width: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """Named directions as an explicit order, to be joined with others: ``torch.cat([named_order(...), own])``.

    Args:
        directions: K of ``DIRECTIONS``.
        height, width: H and W of the map.
        device: where the result lies.

    Returns:
        (K, H * W) int64; entry [k, t] is the raster position of the pixel that direction k visits at step t.

    Raises:
        ValueError: an unknown name.
    """
    raster = torch.arange(height * width, device=device).view(height, width)
    rows = []
    for code in codes(directions):
        row = (raster.t() if code % 2 else raster).flatten()
        rows.append(row.flip(0) if code >= 2 else row)
    return torch.stack(rows)


def check_form(order: torch.Tensor, count: int, length: int) -> None:
    """Whether a tensor can be an order, its values aside (those of a traced tensor are not known).

    Args:
        order: what a caller gave.
        count: K, directions of the scan.
        length: H * W.

    Raises:
        ValueError: another dtype or shape than int32 or int64 and (K, H * W), or a map of 2^31 pixels and more.
    """
    if order.dtype not in (torch.int32, torch.int64) or tuple(order.shape) != (count, length):
        raise ValueError(
            f"ss2d_scan: order must be int32 or int64 of shape {(count, length)}, a permutation of the {length} pixels "
            f"for each of {count} directions; got {order.dtype} of shape {tuple(order.shape)}"
        )
    if length > _MOST_PIXELS:
        raise ValueError(f"ss2d_scan: an explicit order takes at most {_MOST_PIXELS} pixels, got {length}")


def verified(order: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """A contiguous int32 copy of an order whose rows are permutations of range(length).

    The result is kept for as long as the tensor lives and is not written to: a network that scans in the same order
    again pays for a look-up.

    Args:
        order: (K, H * W) int32 or int64; entry [k, t] is the raster position of the pixel visited at step t.
        count, length: as in :func:`check_form`.

    Raises:
        ValueError: another dtype or shape, or a row that is no permutation; the first fault is named.
    """
    check_form(order, count, length)
    version = None if order.is_inference() else order._version  # inference tensors do not count their changes
    known = _verified.get(order)
    if known is not None and version is not None and known[0] == version:
        return known[1]
    fault = _fault(order)
    if fault:
        raise ValueError(f"ss2d_scan: every row of order must be a permutation of range({length}); {fault}")
    copy = order.detach().to(torch.int32, copy=True, memory_format=torch.contiguous_format)
    if version is not None:
        _verified[order] = version, copy
    return copy


def _fault(order: torch.Tensor) -> str | None:
    """Reason why the rows are not permutations of the pixels; None if they are."""
    fault = permutation_fault(order)
    if fault is None:
        return None
    row, place, value = fault
    if value is None:
        return f"row {row} visits a pixel twice and never visits pixel {place}"
    return f"row {row} names pixel {value} at step {place}"
