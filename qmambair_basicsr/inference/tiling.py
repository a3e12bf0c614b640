"""Splitting an image into tiles, running a network on each, and putting the results together.

The default (:func:`release_spans`) is the protocol behind the published MambaIR tables: an axis of ``n`` pixels
is cut into ``n // 200 + 1`` equal parts, the image being mirror-padded at the bottom and right until they are
equal, and each part is read with a margin of a tenth of its length towards every neighbour. Margins are cut
from the result, so each output pixel comes from exactly one tile. Statistics inside the network (DLS ranges,
MambaIRv2's token routing) are therefore those of a tile, which is why the protocol is part of the result.

Spans are plain integers; only :func:`run_tiled` and :func:`pad_to` touch tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..strict import check_keys

RELEASE_PART = 200  # pixels; an axis shorter than this stays whole
RELEASE_MARGIN_DIVISOR = 10  # margin = part // 10


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in input pixels: ``[start, stop)`` is read, ``[keep_start, keep_stop)`` is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True)
class AxisPlan:
    """The tiles of one axis and the length the axis must be padded to before they are cut."""

    padded: int
    spans: tuple[Span, ...]


def whole_spans(length: int) -> AxisPlan:
    """The axis in one piece.

    Args:
        length: axis length in pixels, at least 1.
    """
    return AxisPlan(length, (Span(0, length, 0, length),))


def release_spans(length: int) -> AxisPlan:
    """Tiles of the published protocol (see the module docstring).

    Args:
        length: axis length in pixels, at least 1.
    """
    count = length // RELEASE_PART + 1
    part = -(-length // count)
    margin = part // RELEASE_MARGIN_DIVISOR
    padded = part * count
    spans = []
    for low in range(0, padded, part):
        high = low + part
        spans.append(Span(max(low - margin, 0), min(high + margin, padded), low, high))
    return AxisPlan(padded, tuple(spans))


def fixed_spans(length: int, size: int, overlap: int) -> AxisPlan:
    """Tiles of one fixed length, as an engine with a static input shape needs them.

    Neighbours share at least ``overlap`` pixels and the seam runs through the middle of what they share; the last
    tile is moved back to end at the border. An axis shorter than ``size`` stays whole.

    Args:
        length: axis length in pixels, at least 1.
        size: tile length in pixels.
        overlap: least number of pixels two neighbours share, ``0 <= overlap < size``.
    """
    if length <= size:
        return whole_spans(length)
    starts = [*range(0, length - size, size - overlap), length - size]
    seams = [0] + [(low + size + following) // 2 for low, following in itertools.pairwise(starts)] + [length]
    spans = [Span(low, low + size, seams[i], seams[i + 1]) for i, low in enumerate(starts)]
    return AxisPlan(length, tuple(spans))


def balanced_spans(length: int, size: int, overlap: int) -> AxisPlan:
    """As few tiles as :func:`fixed_spans` needs, all as short as their number allows.

    Args:
        length: axis length in pixels, at least 1.
        size: longest tile in pixels.
        overlap: least number of pixels two neighbours share, ``0 <= overlap < size``.
    """
    count = max(1, -(-(length - overlap) // (size - overlap)))
    return fixed_spans(length, -(-(length + (count - 1) * overlap) // count), overlap)


@dataclass(frozen=True)
class Feather:
    """What one tile contributes along one axis of the output.

    Attributes:
        start: first output pixel that it contributes to.
        weights: its share of this and the following pixels, float32; the shares of all tiles add up to 1.
    """

    start: int
    weights: np.ndarray

    @property
    def stop(self) -> int:
        """The pixel behind the last one."""
        return self.start + len(self.weights)

    def within(self, span: Span, scale: int) -> slice:
        """These pixels in the output of the tile itself."""
        return slice(self.start - span.start * scale, self.stop - span.start * scale)


def feathers(plan: AxisPlan, scale: int) -> list[Feather]:
    """The shares of tiles that fade into each other in the middle half of what neighbours share.

    The outer quarter of what is shared serves as context alone: that near its border a tile knows least.

    Args:
        plan: tiles of the axis, not padded.
        scale: output pixels per input pixel.
    """
    position = (np.arange(plan.padded * scale) + 0.5) / scale
    shares = np.ones((len(plan.spans), len(position)))
    for number, (low, high) in enumerate(itertools.pairwise(plan.spans)):
        seam, half = high.keep_start, max((low.stop - high.start) / 4, 0.5 / scale)
        rising = np.clip((position - seam + half) / (2 * half), 0, 1)
        shares[number] *= 1 - rising
        shares[number + 1] *= rising
    for number, span in enumerate(plan.spans):  # a tile knows nothing beyond its ends
        shares[number] *= (position > span.start) & (position < span.stop)
    shares /= shares.sum(0)
    found = []
    for share in shares:
        (used,) = share.nonzero()
        start, stop = int(used[0]), int(used[-1]) + 1
        found.append(Feather(start, share[start:stop].astype(np.float32)))
    return found


def parse_tile_option(tile: object) -> Callable[[int], AxisPlan]:
    """The planner an option value asks for.

    Args:
        tile: ``"release"`` or ``True`` (published protocol), ``False`` or ``None`` (whole image), or a mapping
            ``{size: pixels, overlap: pixels}``; ``overlap`` defaults to a tenth of ``size``.

    Returns:
        Function from axis length to :class:`AxisPlan`.

    Raises:
        ValueError: for anything else, naming the key and what is allowed.
    """
    if tile is None or tile is False:
        return whole_spans
    if tile is True or tile == "release":
        return release_spans
    if not isinstance(tile, dict):
        raise ValueError(f"tile: {tile!r} is not understood; use release, false or {{size: 200, overlap: 20}}")
    check_keys("tile", tile, ("size", "overlap"))
    if "size" not in tile:
        raise ValueError("tile: the key 'size' (pixels of the network's input) is missing")
    size = tile["size"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"tile: size must be a whole number of pixels, at least 1, got {size!r}")
    overlap = tile.get("overlap", size // 10)
    if isinstance(overlap, bool) or not isinstance(overlap, int) or not 0 <= overlap < size:
        raise ValueError(f"tile: overlap must be a whole number in 0..{size - 1} (below size {size}), got {overlap!r}")
    return lambda length: fixed_spans(length, size, overlap)


def middle(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of an image.

    Args:
        x: (..., H, W).
        height, width: size of the result; where the image is smaller, it is taken whole.
    """
    height, width = min(height, x.shape[-2]), min(width, x.shape[-1])
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width].contiguous()


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """Pad at the bottom and right: mirrored as far as the image reaches, its last row or column repeated beyond.

    Args:
        x: image, (B, C, H, W).
        height: rows wanted, at least H.
        width: columns wanted, at least W.
    """
    while x.shape[-2:] != (height, width):
        rows, columns = height - x.shape[-2], width - x.shape[-1]
        mirrored = min(columns, x.shape[-1] - 1), min(rows, x.shape[-2] - 1)
        if mirrored == (0, 0):  # a single row or column has no mirror image
            return F.pad(x, (0, columns, 0, rows), mode="replicate")
        x = F.pad(x, (0, mirrored[0], 0, mirrored[1]), mode="reflect")
    return x


def run_padded(network: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> tuple[Tensor, int]:
    """Run a network whose input sides must be multiples of something, and cut the padding from its output.

    Args:
        network: maps (B, C, H, W) to (B, C', s*H, s*W) for one whole s.
        x: image, (B, C, H, W), any size.
        multiple: what H and W must be divisible by; 1 for networks that take any size.

    Returns:
        The output for ``x`` and the scale s.

    Raises:
        ValueError: when the output is not a whole multiple of the input.
    """
    height, width = x.shape[-2:]
    y = network(pad_to(x, -(-height // multiple) * multiple, -(-width // multiple) * multiple))
    padded = -(-height // multiple) * multiple, -(-width // multiple) * multiple
    scale = y.shape[-2] // padded[0]
    if scale < 1 or tuple(y.shape[-2:]) != (padded[0] * scale, padded[1] * scale):
        raise ValueError(
            f"the network turned {padded[0]}x{padded[1]} pixels into {y.shape[-2]}x{y.shape[-1]}, "
            "which is not a whole multiple: tiles cannot be put together"
        )
    return y[..., : height * scale, : width * scale], scale


def run_tiled(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    plan: Callable[[int], AxisPlan],
    multiple: int = 1,
    column_plan: Callable[[int], AxisPlan] | None = None,
) -> Tensor:
    """Run a network tile by tile.

    Args:
        network: maps (B, C, h, w) to (B, C', s*h, s*w) for one whole s.
        x: image, (B, C, H, W).
        plan: from :func:`parse_tile_option`; called with H and with W.
        multiple: sides of what the network sees are padded to multiples of this.
        column_plan: called with W instead, where tiles are not square.

    Returns:
        (B, C', s*H, s*W), on the device and in the type the network returns.
    """
    height, width = x.shape[-2:]
    rows, columns = plan(height), (column_plan or plan)(width)
    x = pad_to(x, rows.padded, columns.padded)
    result = None
    for row in rows.spans:
        for column in columns.spans:
            tile = x[..., row.start : row.stop, column.start : column.stop].contiguous()
            y, scale = run_padded(network, tile, multiple)
            if result is None:
                result = y.new_empty((*y.shape[:-2], rows.padded * scale, columns.padded * scale))
            result[
                ...,
                row.keep_start * scale : row.keep_stop * scale,
                column.keep_start * scale : column.keep_stop * scale,
            ] = y[
                ...,
                (row.keep_start - row.start) * scale : (row.keep_stop - row.start) * scale,
                (column.keep_start - column.start) * scale : (column.keep_stop - column.start) * scale,
            ]
    assert isinstance(result, torch.Tensor)  # every plan has at least one span
    return result[..., : height * scale, : width * scale]
