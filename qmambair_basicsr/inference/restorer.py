"""An opened network: arrays in, restored arrays out, whole or in tiles."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn

from ..layers.convert import freeze_dls
from ..layers.info import network_info
from ..layers.sites import activation_sites, network_sites
from . import backends, memory
from .backends import Network
from .tiling import AxisPlan, Span, balanced_spans, feathers, run_padded, run_tiled, whole_spans

__all__ = ["OVERLAP", "RestoreError", "Restorer", "Tiles", "bits_of"]

OVERLAP = 32  # pixels that neighbouring tiles share, half of a tile at most; in the middle half of them one fades into the other
SMALLEST_TILE = 48  # pixels: below that most of a tile is overlap
_CROPS, _CROP = 16, 96  # crops of an image that a following grid is taken from, and their side

logger = logging.getLogger(__name__)


class RestoreError(ValueError):
    """An image cannot be restored; the message says why."""


class _TooLarge(Exception):
    """Memory ended at a whole image of a network whose grids follow it: tiles need constant ones first."""


@dataclass
class _Limit:
    """Longest tile side that memory was enough for, in pixels; None as long as it never ended."""

    side: int | None = None


@dataclass(frozen=True)
class Tiles:
    """How an image is cut.

    Attributes:
        rows, columns: the tiles of each axis, in pixels of the image.
    """

    rows: AxisPlan
    columns: AxisPlan

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows.spans) * len(self.columns.spans)


def bits_of(net: nn.Module) -> tuple[int, int]:
    """Bits of most weights and of most activations of a network; 32 where nothing is quantized."""

    def most(sites: list) -> int:
        widths = [placed.quantizer.bits for placed in sites if placed.quantizer.bits != 32]
        return max(set(widths), key=widths.count) if widths else 32

    placed = network_sites(net)
    weights = [p for p in placed if p.site.operand == "weight"]
    return most(weights), most([p for p in placed if p.site.operand == "act"])


class Restorer:
    """A network that restores images; made by :func:`qmambair_basicsr.inference.open`.

    Args:
        net: in evaluation, on the CPU.
        backend: ``auto``, ``integer``, ``float`` or ``onnx``.
        device: where the float backend computes.
        half: in half precision (GPUs).
        task: what the network is for.
        demanded: another backend would be wrong; None: where it is not ``auto``.

    Attributes:
        scale: output pixels per input pixel along a side.
        channels: 1 (grey) or 3 (RGB); images of the other kind are restored all the same.
        bits: of weights and of activations, 32 for full precision.
        task: ``sr``, ``denoise``, ``jpeg``, ``realdenoise`` or ``restoration``.
        architecture: registered name of the network.
        backend: what computes: ``integer``, ``float`` or ``onnx``.
        follows: some quantizers take their grid from each image (DLS).

    Raises:
        BackendError: see :func:`qmambair_basicsr.inference.open`.
    """

    def __init__(
        self,
        net: nn.Module,
        backend: str,
        device: torch.device,
        half: bool,
        task: str | None = None,
        demanded: bool | None = None,
    ):
        info = network_info(net)
        self.net, self.device, self.half = net.eval().requires_grad_(False), device, half
        self.scale, self.channels, self._multiple = info.scale, info.channels, info.size_multiple
        self.bits = bits_of(net)
        self.task = task or ("sr" if info.scale > 1 else "restoration")
        self.architecture = type(net).__name__
        self.follows = any(placed.quantizer.dynamic for placed in activation_sites(net))
        chosen = backends.runs_on(net, backend, device, half)
        self._demanded = backend != "auto" if demanded is None else demanded
        self._network, self.backend = backends.build(net, chosen, device, half, self._demanded)
        self._limit = _Limit()

    def __repr__(self) -> str:
        bits = "/".join(map(str, self.bits))
        return f"<{self.architecture} x{self.scale}, task {self.task}, {self.channels} channels, {bits} bits, {self.backend}>"

    def tiles(self, height: int, width: int, tile: int | str = "auto", overlap: int | None = None) -> Tiles:
        """How an image is cut into tiles.

        Args:
            height, width: of the image, in pixels.
            tile: longest side of a tile; ``auto`` follows the memory that is free and the width of the network; ``off``
                is the image in one piece.
            overlap: pixels that neighbours share; None for ``OVERLAP``, or half of a tile that is smaller than twice that.

        Raises:
            ValueError: another word, or an overlap that is no number of pixels or leaves nothing of a tile.
        """
        if overlap is not None and not _whole(overlap, 0):
            raise ValueError(f"overlap: {overlap!r} is no number of pixels")
        if tile == "off":
            size = max(height, width)
        elif tile == "auto":
            size = max(SMALLEST_TILE, (overlap or 0) + 16, memory.tile_side(self.net, self.device))
        elif _whole(tile, 1):
            size = int(tile)
        else:
            raise ValueError(f"tile: {tile!r} is no size; use a number of pixels, auto or off")
        size = size if self._limit.side is None else min(size, self._limit.side)
        if height * width <= size * size:
            return Tiles(whole_spans(height), whole_spans(width))
        overlap = min(OVERLAP, size // 2) if overlap is None else int(overlap)
        if overlap >= size:
            raise ValueError(
                f"overlap: {overlap} pixels leave nothing of tiles of {size}; use less, such as {size // 4}"
            )
        return Tiles(balanced_spans(height, size, overlap), balanced_spans(width, size, overlap))

    def restore(
        self,
        image: np.ndarray,
        tile: int | str = "auto",
        overlap: int | None = None,
        tta: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Restore one image.

        Args:
            image: (H, W), (H, W, 1) or (H, W, 3) in RGB order; uint8, uint16, or floating point with values in [0, 1].
            tile, overlap: see :meth:`tiles`.
            tta: mean over the eight mirrored and turned forms of each tile (eight times the time).
            progress: told the number of finished tiles, and of all, after each.

        Returns:
            (H * scale, W * scale), channels and type of ``image``; integers are clipped and rounded, floating
            point is not.

        Raises:
            ValueError: an array that is no such image.
            RestoreError: the network gives NaN or infinity for it.
        """
        image = np.asarray(image)
        strips = list(self.strips(image, tile, overlap, tta, progress))
        whole = (np.concatenate(strips) if len(strips) > 1 else strips[0]).astype(image.dtype, copy=False)
        return whole[..., 0] if image.ndim == 2 else whole

    def strips(
        self,
        image: np.ndarray,
        tile: int | str = "auto",
        overlap: int | None = None,
        tta: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """The restored image from top to bottom, one row of tiles after the other, so that it is never held whole.

        Arguments and errors as :meth:`restore`.

        Yields:
            (h, W * scale, C): the next rows.
        """
        image = np.asarray(image)
        _require_image(image)
        pixels = image if image.ndim == 3 else image[..., None]
        while True:
            tiles = self.tiles(*pixels.shape[:2], tile, overlap)
            worker = self.with_grids_of(pixels) if tiles.count > 1 and self.follows else self
            try:
                shared = OVERLAP if overlap is None else int(overlap)
                yield from worker._strips(pixels, tiles, shared, tta, progress or (lambda done, total: None))
                return
            except _TooLarge:  # nothing has been handed out yet: a whole image is a single strip
                continue

    def with_grids_of(self, image: np.ndarray) -> Restorer:
        """The network with constant grids where they follow what it is given, so that tiles differ in content alone.

        A constant is the mean over crops spread evenly over the image, as ``freeze_dls`` takes it over calibration images.

        Args:
            image: (H, W) or (H, W, C).
        """
        pixels = image if image.ndim == 3 else image[..., None]
        height, width = pixels.shape[:2]
        crops = min(_CROP, height), min(_CROP, width)
        rows = _spread(height, crops[0], math.isqrt(_CROPS))
        columns = _spread(width, crops[1], math.isqrt(_CROPS))
        net = copy.deepcopy(self.net)
        batches = (
            _tensor(pixels, Span(top, top + crops[0], 0, 0), Span(left, left + crops[1], 0, 0), self.channels)
            for top in rows
            for left in columns
        )
        freeze_dls(net, batches, lambda n, x: run_padded(n, x, self._multiple))
        made = Restorer(net, self.backend, self.device, self.half, self.task, demanded=self._demanded)
        made._limit = self._limit
        return made

    def _strips(
        self, pixels: np.ndarray, tiles: Tiles, overlap: int, tta: bool, progress: Callable[[int, int], None]
    ) -> Iterator[np.ndarray]:
        width, channels = pixels.shape[1:]
        network = eight_flips(self._network) if tta else self._network
        rows, columns = feathers(tiles.rows, self.scale), feathers(tiles.columns, self.scale)
        held, base, done = np.zeros((0, width * self.scale, channels), np.float32), 0, 0  # held[0] is row `base`
        for number, (row, down) in enumerate(zip(tiles.rows.spans, rows, strict=True)):
            more = np.zeros((down.stop - base - len(held), *held.shape[1:]), np.float32)
            held = np.concatenate((held, more)) if len(held) else more
            for column, across in zip(tiles.columns.spans, columns, strict=True):
                y = self._within_memory(network, _tensor(pixels, row, column, self.channels), overlap)
                part = _values(y, channels)[down.within(row, self.scale), across.within(column, self.scale)]
                if not np.isfinite(part).all():
                    raise RestoreError(f"{self.architecture} gives NaN or infinity for this image")
                if tiles.count > 1:
                    part = part * down.weights[:, None, None] * across.weights[:, None]
                held[down.start - base : down.stop - base, across.start : across.stop] += part
                done += 1
                progress(done, tiles.count)
            ready = rows[number + 1].start if number + 1 < len(rows) else down.stop
            yield _pixels(held[: ready - base], pixels.dtype)
            held, base = held[ready - base :], ready

    def _within_memory(self, network: Network, x: Tensor, overlap: int) -> Tensor:
        """Run one tile, in smaller ones where memory ends."""
        while True:
            longest, limit = max(x.shape[-2:]), self._limit.side
            try:
                if limit is None or longest <= limit:
                    return run_padded(network, x, self._multiple)[0]
                plan = partial(balanced_spans, size=limit, overlap=min(overlap, limit // 2))
                return run_tiled(network, x, plan, self._multiple)
            except (RuntimeError, MemoryError) as err:
                if not memory.ended(err):
                    raise
                used = longest if limit is None else min(longest, limit)
                if used < 2 * SMALLEST_TILE:
                    raise RestoreError(
                        f"memory ends even with tiles of {used} pixels; free some, or use the CPU"
                    ) from err
                if limit is None:  # said once
                    logger.warning("memory ended at a tile of %d pixels: smaller ones are used", used)
                self._limit.side = used // 2
                memory.free(self.device)
            if self.follows:
                raise _TooLarge


def eight_flips(network: Network) -> Network:
    """The mean of a network's outputs for the eight mirrored and turned forms of its input, turned back."""

    def run(x: Tensor) -> Tensor:
        total: Tensor | None = None
        for form in range(8):
            turned = x.transpose(-1, -2) if form & 4 else x
            dims = [dim for dim, bit in ((-1, 1), (-2, 2)) if form & bit]
            y = network(turned.flip(dims).contiguous()).flip(dims)
            y = y.transpose(-1, -2) if form & 4 else y
            total = y.contiguous() if total is None else total + y
        return total / 8

    return run


def _require_image(image: np.ndarray) -> None:
    kind = image.dtype
    known = (kind.kind == "u" and kind.itemsize <= 2) or kind.kind == "f"  # in either order of bytes
    if not known or image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(
            f"images are (H, W), (H, W, 1) or (H, W, 3) of uint8, uint16 or floating point; got {image.shape} of {image.dtype}"
        )


def _whole(value: object, least: int) -> bool:
    """Whether a value is a whole number, Python's or NumPy's, of at least so much."""
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_)) and value >= least


def _spread(length: int, side: int, count: int) -> list[int]:
    """Starts of at most ``count`` pieces of ``side``, evenly spread; fewer where they would share more than half."""
    count = max(1, min(count, 2 * (length - side) // max(side, 1) + 1))
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _tensor(pixels: np.ndarray, row: Span, column: Span, channels: int) -> Tensor:
    """(N, channels, h, w) in [0, 1]: grey is repeated for a colour network; a grey network gets each colour as a sample."""
    part = np.ascontiguousarray(pixels[row.start : row.stop, column.start : column.stop])
    whole = np.iinfo(part.dtype).max if part.dtype.kind == "u" else 1
    x = torch.from_numpy(part.astype(np.float32) / np.float32(whole)).permute(2, 0, 1)  # (C, h, w)
    if x.shape[0] == channels:
        return x.unsqueeze(0).contiguous()
    if channels == 1:
        return x.unsqueeze(1).contiguous()
    return x.expand(channels, -1, -1).unsqueeze(0).contiguous()


def _values(y: Tensor, channels: int) -> np.ndarray:
    """(N, C, h, w) of the network -> (h, w, channels); inverse of :func:`_tensor`."""
    y = y.flatten(0, 1)  # (N * C, h, w): one of the two is 1
    y = y.mean(0, keepdim=True) if y.shape[0] > channels else y
    return y.permute(1, 2, 0).numpy()


def _pixels(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Values in [0, 1] as the image's type."""
    if np.dtype(kind).kind != "u":
        return values.astype(kind)
    whole = np.iinfo(kind).max
    return np.rint(np.clip(values, 0, 1) * np.float32(whole)).astype(kind)
