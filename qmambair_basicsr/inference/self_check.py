"""``--self-check``: what the backend, the bits and the tiles change, measured at the middle of a picture."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..calibration.collect import full_precision
from .restorer import OVERLAP, Restorer
from .tiling import Feather, feathers

__all__ = ["LEAST_PSNR", "SelfCheck", "self_check"]

LEAST_PSNR = 35.0  # dB between a backend and the exact network: below that it computes something else
_SIDE, _TILE = 96, 112  # pixels: what is compared with the exact network; tiles of the seam test


@dataclass(frozen=True)
class SelfCheck:
    """What was measured.

    Attributes:
        backend: PSNR in dB of the backend against the same network in float64.
        bits: PSNR in dB against the same weights with activations in full precision; None for networks without bits.
        seam: step that tiles add across the worst line of pixels where one fades into the next, mean of the line, in
            1/255; it is what is seen as a seam. None where the picture is a single such tile.
        seam_pixel: largest step at any pixel there; single codes that fall to the other side show here.
    """

    backend: float
    bits: float | None
    seam: float | None
    seam_pixel: float | None

    @property
    def passed(self) -> bool:
        """Whether the backend computes the network."""
        return self.backend >= LEAST_PSNR

    def __str__(self) -> str:
        parts = [f"backend {self.backend:.1f} dB from float64"]
        if self.bits is not None:
            parts.append(f"{self.bits:.1f} dB from full-precision activations")
        if self.seam is not None:
            parts.append(f"seams of {self.seam:.2f}/255, at single pixels {self.seam_pixel:.1f}/255")
        return "; ".join(parts)


def self_check(restorer: Restorer, colours: np.ndarray, overlap: int | None = None) -> SelfCheck:
    """Measure.

    Args:
        restorer: opened network.
        colours: (H, W, 1 or 3), the picture.
        overlap: of the tiles, in pixels; None for the usual one.
    """
    overlap = OVERLAP if overlap is None else overlap
    whole = np.iinfo(colours.dtype).max
    crop = _middle(colours, _SIDE).astype(np.float32) / whole
    got = restorer.restore(crop, tile="off")
    exact = Restorer(copy.deepcopy(restorer.net).double(), "float", torch.device("cpu"), False)
    psnr, bits = _psnr(got, exact.restore(crop, tile="off")), None
    if restorer.bits != (32, 32):
        with full_precision(exact.net, True):
            bits = _psnr(got, exact.restore(crop, tile="off"))
    seam = _seams(restorer, _middle(colours, 2 * _TILE - max(overlap, 1)).astype(np.float32) / whole, overlap)
    return SelfCheck(psnr, bits, *seam)


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.square(a.astype(np.float64).clip(0, 1) - b.clip(0, 1)).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def _seams(restorer: Restorer, image: np.ndarray, overlap: int) -> tuple[float | None, float | None]:
    """Steps that tiles add where one fades into the next, in 1/255: of the worst line, and of the worst pixel."""
    if max(image.shape[:2]) <= _TILE or overlap >= _TILE:
        return None, None
    same = restorer.with_grids_of(image) if restorer.follows else restorer
    plan = same.tiles(*image.shape[:2], _TILE, overlap)
    if plan.count == 1:
        return None, None
    error = same.restore(image, tile=_TILE, overlap=overlap).astype(np.float64).clip(0, 1)
    error -= same.restore(image, tile="off").astype(np.float64).clip(0, 1)
    steps = [255 * step for step in _steps(error, feathers(plan.rows, same.scale))]
    steps += [255 * step for step in _steps(error.swapaxes(0, 1), feathers(plan.columns, same.scale))]
    lines = [np.abs(step.mean((1, 2))).max() for step in steps]
    return float(max(lines)), float(max(np.abs(step).max() for step in steps))


def _steps(error: np.ndarray, tiles: list[Feather]) -> Iterator[np.ndarray]:
    """Differences between neighbouring lines of the error where one tile fades into the next."""
    for low, high in itertools.pairwise(tiles):
        yield np.diff(error[high.start - 1 : low.stop + 1], axis=0)
