"""What TIFFs hold that Pillow and OpenCV do not tell, or read in part only; tag numbers are those of TIFF 6.0."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

__all__ = ["in_planes", "pages_of", "planes_of", "samples_of", "white_is_zero"]

_SUBFILE, _PHOTOMETRIC, _PLANES = 254, 262, 284
_COPY_OR_MASK = 0b101  # bits of NewSubfileType: a smaller copy of a page, or its mask


def pages_of(image: Image.Image) -> int:
    """Number of pages, without smaller copies and masks of one."""
    count = 0
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        count += not image.tag_v2.get(_SUBFILE, 0) & _COPY_OR_MASK
    image.seek(0)
    return count


def white_is_zero(image: Image.Image) -> bool:
    """Whether grey counts from white."""
    return image.tag_v2.get(_PHOTOMETRIC) == 0


def in_planes(image: Image.Image) -> bool:
    """Whether one colour is stored behind the other, of which OpenCV reads the first alone."""
    return image.tag_v2.get(_PLANES) == 2


def planes_of(path: str | os.PathLike) -> np.ndarray:
    """(H, W, C) uint16, in native order of bytes, of a file in planes.

    Raises:
        ValueError: compressed in a way that tifffile cannot read.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        planes = tiff.pages.first.asarray()  # (C, H, W)
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1).astype(np.uint16))


def samples_of(path: str | os.PathLike) -> str | None:
    """What is held of each pixel, in words; None of files that are no TIFF."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            return f"{page.samplesperpixel} samples of {page.dtype} for each pixel"
    except Exception:  # whatever tifffile says of a file that is none, or damaged
        return None
