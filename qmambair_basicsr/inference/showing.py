"""Comparisons of pictures with their results, and with ground truth: ``--page`` and ``--truth``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..data.image_files import ImageFileError, list_images
from .image_sets import partners
from .inputs import Job
from .page import Comparison, Detail, collecting, detail_of, figure, write_page
from .pictures import Picture, read_picture

__all__ = ["PAGE", "Page", "Truths", "difference"]

PAGE = "page.html"


def difference(result: Picture, truth: Picture) -> float | None:
    """PSNR in dB over all colours of two pictures, in 8 bits; None where they differ in size or mode."""
    a, b = (picture.in_eight_bits().pixels.astype(np.float64) for picture in (result, truth))
    if a.shape != b.shape:
        return None
    error = float(np.square(a - b).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


class Truths:
    """Ground truth of pictures, found by name as ``image_sets.partners`` does.

    Args:
        folder: of ground truth; None for none.
        scale: of the network.

    Raises:
        ImageFileError, FileNotFoundError: no such folder, or no image in it.
    """

    def __init__(self, folder: Path | None, scale: int):
        self.files, self.scale = ([] if folder is None else list_images(folder)), scale

    def psnr(self, job: Job) -> str | None:
        """The PSNR of a finished result in words; None without ground truth."""
        if not self.files:
            return None
        try:
            truth = partners([job.source], self.files, self.scale)[job.source]
            value = difference(read_picture(job.target), read_picture(truth))
        except (ValueError, ImageFileError):
            return "no ground truth"
        return "ground truth of another size" if value is None else f"PSNR {value:.2f} dB"


class Page:
    """The page of a run, picture by picture.

    Args:
        lead: what the results were made with.
    """

    def __init__(self, lead: str):
        self.lead, self.parts = lead, []

    def watch(self, before: Picture, size: tuple[int, int], strips: Iterable[np.ndarray]) -> tuple[Iterator, list]:
        """Pass the strips of a result on, and keep what is shown of it.

        Args:
            before: the picture.
            size: (height, width) of the result.
            strips: of the result.

        Returns:
            The strips, and what :meth:`add` takes once they are through.
        """
        shown, inside = self._parts_of(before, size)
        rows: list[np.ndarray] = []
        return collecting(strips, inside, rows), [shown.of(before.pixels), rows, before]

    def add(self, name: str, kept: list, facts: list[str]) -> None:
        """Add a picture that :meth:`watch` has seen."""
        before, rows, picture = kept
        self._append(name, picture, before, np.concatenate(rows), facts)

    def add_finished(self, job: Job, name: str, facts: list[str]) -> None:
        """Add a picture whose result an earlier run has written.

        Raises:
            ImageFileError: one of them cannot be read.
        """
        before, after = read_picture(job.source), read_picture(job.target)
        shown, inside = self._parts_of(before, after.pixels.shape[:2])
        pixels = after.in_eight_bits().in_mode(_shown_mode(after)).pixels
        self._append(name, before, shown.of(before.pixels), inside.of(pixels), facts, ready=True)

    def write(self, path: Path) -> None:
        """Write the page."""
        write_page(path, "Before and after", self.lead, self.parts)

    @staticmethod
    def _parts_of(before: Picture, size: tuple[int, int]) -> tuple[Detail, Detail]:
        height, width = before.pixels.shape[:2]
        shown = detail_of(before.pixels, max(size[0] / height, size[1] / width))
        if (shown.height, shown.width) == (height, width):
            return shown, Detail(0, 0, *size)
        return shown, shown.times(size[0] / height)

    def _append(
        self, name: str, picture: Picture, before: np.ndarray, after: np.ndarray, facts: list[str], ready: bool = False
    ) -> None:
        def as_shown(pixels: np.ndarray) -> np.ndarray:
            part = Picture(np.ascontiguousarray(pixels), picture.mode, picture.format, picture.about).in_eight_bits()
            return part.in_mode(_shown_mode(picture)).pixels

        self.parts.append(figure(Comparison(name, as_shown(before), after if ready else as_shown(after), facts)))


def _shown_mode(picture: Picture) -> str:
    """Browsers show colours of light."""
    return "RGB" if picture.mode == "CMYK" else picture.mode
