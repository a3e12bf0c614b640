"""Writing a PNG from rows as they come, so that a panorama is never held whole.

Pillow and OpenCV encode whole images only, Pillow no colour of 16 bits, OpenCV no profile or EXIF. The format is that of
the PNG specification (third edition): chunks with a CRC, filtered rows compressed by zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

__all__ = ["write_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
_LARGEST = 2**31 - 1
_BLOCK = 1 << 20  # compressed bytes in a chunk, about


def _chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))


def write_png(
    file: BinaryIO,
    strips: Iterable[np.ndarray],
    mode: str,
    width: int,
    height: int,
    sixteen: bool,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    xmp: bytes | None = None,
    level: int = 6,
) -> None:
    """Write a PNG.

    Args:
        file: to write to.
        strips: (h, width, channels) uint8 or uint16, from top to bottom, ``height`` rows in all.
        mode: ``L``, ``LA``, ``RGB`` or ``RGBA``.
        width, height: in pixels.
        sixteen: 16 bits per sample.
        icc: profile.
        exif: without the ``Exif`` mark of JPEG.
        dpi: pixels per inch, (x, y).
        xmp: packet of metadata.
        level: of zlib.

    Raises:
        ValueError: strips of another size, type or number of rows; a picture that the format has no room for.
    """
    if not (0 < width <= _LARGEST and 0 < height <= _LARGEST):
        raise ValueError(f"a PNG has at most {_LARGEST} pixels along a side; got {width} x {height}")
    kind = np.dtype(np.uint16 if sixteen else np.uint8)
    file.write(_SIGNATURE)
    header = struct.pack(">IIBBBBB", width, height, 16 if sixteen else 8, _COLOUR_TYPES[mode], 0, 0, 0)
    _chunk(file, b"IHDR", header)
    if icc:
        _chunk(file, b"iCCP", b"ICC Profile\x00\x00" + zlib.compress(icc))
    if dpi:
        _chunk(file, b"pHYs", struct.pack(">IIB", *(round(n / 0.0254) for n in dpi), 1))
    if exif:
        _chunk(file, b"eXIf", exif)
    if xmp:
        _chunk(file, b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + xmp)
    packer, pending, rows = zlib.compressobj(level), bytearray(), 0
    above = np.zeros((1, width * len(mode) * kind.itemsize), np.uint8)
    for strip in strips:
        if strip.dtype != kind or strip.shape[1:] != (width, len(mode)):
            raise ValueError(f"rows of {strip.shape[1:]}, {strip.dtype}; the PNG has {(width, len(mode))}, {kind}")
        rows += len(strip)
        for start in range(0, len(strip), 64):
            part = np.ascontiguousarray(strip[start : start + 64], dtype=kind.newbyteorder(">"))
            raw = part.view(np.uint8).reshape(len(part), -1)  # (h, bytes of a row)
            pending += packer.compress(_filtered(raw, above, len(mode) * kind.itemsize))
            above = raw[-1:]
            if len(pending) >= _BLOCK:
                _chunk(file, b"IDAT", bytes(pending))
                pending.clear()
    if rows != height:
        raise ValueError(f"{rows} rows for a PNG of {height}")
    _chunk(file, b"IDAT", bytes(pending + packer.flush()))
    _chunk(file, b"IEND", b"")


def _filtered(raw: np.ndarray, above: np.ndarray, pixel: int) -> bytes:
    """Rows with their filter in front: of Sub, Up and Paeth (section 9) the one with the least sum of magnitudes.

    Args:
        raw: (h, n) bytes.
        above: (1, n) the row above the first.
        pixel: bytes of a pixel.
    """
    up = np.concatenate((above, raw[:-1]))
    left, corner = np.zeros_like(raw), np.zeros_like(raw)
    left[:, pixel:], corner[:, pixel:] = raw[:, :-pixel], up[:, :-pixel]
    a, b, c = left.astype(np.int16), up.astype(np.int16), corner.astype(np.int16)
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, up, corner))
    forms = {1: raw - left, 2: raw - up, 4: raw - paeth}
    costs = np.stack([np.abs(form.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64) for form in forms.values()])
    best = costs.argmin(0)  # (h,)
    out = np.empty((len(raw), raw.shape[1] + 1), np.uint8)
    for index, (number, form) in enumerate(forms.items()):
        rows = best == index
        out[rows, 0], out[rows, 1:] = number, form[rows]
    return out.tobytes()
