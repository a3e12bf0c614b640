"""Sizes of images from their headers, without decoding a pixel."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".webp")
MOST_READ = 20_000  # headers of one data set; of a larger one an even sample is read

_HEAD = 64  # bytes; enough for everything but JPEG and TIFF
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers of a frame header


def image_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """Height and width in pixels, or None where the header does not say (damaged, or a kind not known here)."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            if head.startswith(b"\x89PNG\r\n\x1a\n"):
                width, height = struct.unpack_from(">II", head, 16)
            elif head.startswith(b"\xff\xd8"):
                return _jpeg(file)
            elif head.startswith(b"BM"):
                width, height = struct.unpack_from("<ii", head, 18)
            else:
                return None
    except (OSError, ValueError, struct.error):
        return None
    return (abs(height), abs(width)) if width and height else None


def _jpeg(file) -> tuple[int, int] | None:
    """Walk the segments up to the frame header (JPEG, ITU-T T.81, B.2.2)."""
    file.seek(2)
    for _ in range(200):
        start = file.read(4)
        if len(start) < 4 or start[0] != 0xFF:
            return None
        if start[1] == 0xFF:  # fill byte
            file.seek(-3, os.SEEK_CUR)
            continue
        (length,) = struct.unpack(">H", start[2:])
        if start[1] in _FRAMES:
            height, width = struct.unpack_from(">xHH", file.read(5))
            return (height, width) if height and width else None
        file.seek(length - 2, os.SEEK_CUR)
    return None


def list_names(folder: str | os.PathLike) -> list[str]:
    """Names of the image files directly in a folder, sorted; empty where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".")
            )
    except (OSError, ValueError):
        return []


def smallest(folder: str | os.PathLike, names: Iterable[str]) -> tuple[int, str] | None:
    """The shortest side among the images of a folder, and the image; None where no header could be read."""
    names = list(names)
    step = -(-len(names) // MOST_READ) or 1
    best: tuple[int, str] | None = None
    for name in names[::step]:
        size = image_size(Path(folder) / name)
        if size is not None and (best is None or min(size) < best[0]):
            best = (min(size), name)
    return best
