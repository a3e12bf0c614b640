"""Restoring pictures of every mode: colours together, transparency and black ink each as a grey picture of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .pictures import ALPHA, COLOURS, Picture
from .resampling import resized_strips
from .restorer import Restorer

__all__ = ["How", "restored_size", "restored_strips", "without_hidden_colours"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class How:
    """How pictures are restored.

    Attributes:
        tile, overlap, tta: see :meth:`Restorer.restore`.
        outscale: output pixels per input pixel along a side; None for the network's own scale.
    """

    tile: int | str = "auto"
    overlap: int | None = None
    tta: bool = False
    outscale: float | None = None


def restored_size(height: int, width: int, restorer: Restorer, how: How) -> tuple[int, int]:
    """(height, width) of the result of a picture of this size."""
    factor = restorer.scale if how.outscale is None else how.outscale
    return max(1, round(height * factor)), max(1, round(width * factor))


def restored_strips(
    restorer: Restorer, picture: Picture, how: How, progress: Progress | None = None
) -> Iterator[np.ndarray]:
    """The restored picture from top to bottom.

    Args:
        restorer: opened network.
        picture: upright, of any mode.
        how: see :class:`How`.
        progress: told finished tiles, and all of them.

    Yields:
        (h, width, C) with the channels and the type of the picture.

    Raises:
        RestoreError: see :meth:`Restorer.restore`.
    """
    first = COLOURS[picture.mode]
    colours, others = picture.pixels[..., :first], picture.pixels[..., first:]
    if picture.mode in ALPHA:
        colours = without_hidden_colours(colours, others[..., 0])
    ink = picture.mode == "CMYK"
    if ink:  # paper is white for a network that knows light
        colours, others = _negative(colours), _negative(others)
    passes = 1 + sum(not _constant(others[..., c]) for c in range(others.shape[2]))
    count = _Count(passes, progress)
    strips = restorer.strips(colours, how.tile, how.overlap, how.tta, count)
    for channel in range(others.shape[2]):
        strips = _beside(strips, _plane(restorer, others[..., channel : channel + 1], how, count))
    if ink:
        strips = (_negative(strip) for strip in strips)
    height, width = picture.pixels.shape[:2]
    own = restored_size(height, width, restorer, replace(how, outscale=None))
    return resized_strips(strips, own, restored_size(height, width, restorer, how))


class _Count:
    """Progress over several passes of the same picture."""

    def __init__(self, passes: int, progress: Progress | None):
        self.passes, self.progress, self.done = passes, progress, 0

    def __call__(self, done: int, total: int) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, total * self.passes), total * self.passes)


def _negative(pixels: np.ndarray) -> np.ndarray:
    return np.iinfo(pixels.dtype).max - pixels


def _constant(plane: np.ndarray) -> bool:
    return bool((plane == plane.flat[0]).all())


def _plane(restorer: Restorer, pixels: np.ndarray, how: How, progress: Progress) -> Iterator[np.ndarray]:
    """Restored rows; of a plane of one value, such as the transparency of most pictures, that value."""
    if not _constant(pixels):
        yield from restorer.strips(pixels, how.tile, how.overlap, how.tta, progress)
        return
    for _ in range(len(pixels)):
        yield np.full((restorer.scale, pixels.shape[1] * restorer.scale, 1), pixels.flat[0], pixels.dtype)


def _beside(first: Iterator[np.ndarray], second: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Channels of two pictures behind each other, whose strips may have different heights."""
    spare: np.ndarray | None = None
    for strip in first:
        parts, missing = [], len(strip)
        while missing:
            spare = next(second) if spare is None or not len(spare) else spare
            parts.append(spare[:missing])
            spare = spare[missing:]
            missing -= len(parts[-1])
        yield np.concatenate((strip, np.concatenate(parts)), axis=2)


def without_hidden_colours(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours where wholly transparent pixels have that of the nearest visible one.

    What stands there is often black and would bleed into the edge of what is visible.

    Args:
        colours: (H, W, C).
        alpha: (H, W); 0 is transparent.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colours
    _, label = cv2.distanceTransformWithLabels(hidden.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    place = np.zeros(label.max() + 1, np.int64)
    visible = np.flatnonzero(~hidden)
    place[label.flat[visible]] = visible
    filled = colours.copy()
    filled[hidden] = colours.reshape(-1, colours.shape[2])[place[label[hidden]]]
    return filled
