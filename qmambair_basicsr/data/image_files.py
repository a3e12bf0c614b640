"""Reading and writing image files with errors that name the file.

OpenCV returns ``None``, or an image whose lower part is missing, for a damaged file. Here every such file raises
:class:`ImageFileError` with its name, what is wrong with it and what to do.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from ..files import write_bytes

__all__ = [
    "GREY_MODES",
    "IMAGE_SUFFIXES",
    "ImageFileError",
    "decode_image",
    "list_images",
    "match_channels",
    "read_image",
    "to_grey",
    "write_image",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".webp")

GREY_MODES = ("y", "luma")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class ImageFileError(ValueError):
    """A file that should hold an image does not, or holds an unsuitable one. The message starts with its name.

    Args:
        name: the file.
        problem: what is wrong with it; None = ``name`` is the whole message (so torch's loaders build it again from
            the text that a worker process sends).
        remedy: what to do.
    """

    def __init__(self, name: str | os.PathLike, problem: str | None = None, remedy: str = "replace or remove the file"):
        super().__init__(str(name) if problem is None else f"{name}: {problem}; {remedy}")


def _check_png(content: bytes, name: str) -> None:
    """Walk the chunks: a truncated file ends before IEND, a damaged one fails a chunk's CRC (PNG spec. 5.3, 5.4)."""
    at = len(_PNG_SIGNATURE)
    while True:
        if at + 12 > len(content):
            raise ImageFileError(name, f"truncated PNG ({len(content)} bytes, no IEND chunk)")
        (size,) = struct.unpack_from(">I", content, at)
        kind = content[at + 4 : at + 8]
        if at + 12 + size > len(content):
            raise ImageFileError(name, f"truncated PNG (chunk {kind!r} at byte {at} is cut off)")
        (crc,) = struct.unpack_from(">I", content, at + 8 + size)
        if zlib.crc32(content[at + 4 : at + 8 + size]) != crc:
            raise ImageFileError(name, f"damaged PNG (checksum of chunk {kind!r} at byte {at} is wrong)")
        if kind == b"IHDR" and content[at + 16] == 16:
            raise ImageFileError(name, "16 bits per sample", "convert it to 8 bits")
        if kind == b"IEND":
            return
        at += 12 + size


def _jpeg_end(content: bytes, name: str) -> int:
    """Length of a JPEG up to its end-of-image marker (T.81, B.1.1), found by walking the markers.

    Phones append videos and further pictures, which may hold such markers themselves.
    """
    at = 2
    while at + 2 <= len(content):
        kind = content[at + 1]
        if content[at] != 0xFF or kind == 0xFF:  # stray or fill bytes, which every decoder passes over
            at += 1
        elif kind == 0xD9:
            return at + 2
        elif kind == 0x01 or 0xD0 <= kind <= 0xD8:  # markers without content
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            if kind == 0xDA:  # compressed samples follow, in which FF stands before 00 or a restart marker only
                at = next((m.start() for m in _JPEG_MARKER.finditer(content, at)), len(content))
    raise ImageFileError(name, f"truncated JPEG ({len(content)} bytes, no end-of-image marker)")


def decode_image(content: bytes, name: str | os.PathLike) -> np.ndarray:
    """Decode an 8-bit grey or colour image.

    Args:
        content: the file's bytes.
        name: what to call it in errors.

    Returns:
        uint8 (H, W, 1) for a grey file, (H, W, 3) in BGR order for a colour file.

    Raises:
        ImageFileError: empty, truncated, damaged or not an image; more than 8 bits; an alpha channel.
    """
    if len(content) == 0:
        raise ImageFileError(name, "empty file (0 bytes)")
    is_jpeg = content.startswith(_JPEG_SIGNATURE)
    if content.startswith(_PNG_SIGNATURE):
        _check_png(content, str(name))
    elif is_jpeg:
        content = content[: _jpeg_end(content, str(name))]
    flag = (
        cv2.IMREAD_ANYCOLOR if is_jpeg else cv2.IMREAD_UNCHANGED
    )  # UNCHANGED shows an alpha channel instead of dropping it
    try:
        img = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error as err:
        raise ImageFileError(name, f"OpenCV cannot decode it ({err.err or err})") from err
    if img is None:
        raise ImageFileError(name, "not an image, or damaged beyond decoding")
    if img.dtype != np.uint8:
        raise ImageFileError(name, f"samples of type {img.dtype}", "convert it to 8 bits")
    img = img.reshape(*img.shape[:2], -1)
    if img.shape[2] not in (1, 3):
        raise ImageFileError(name, f"{img.shape[2]} channels (alpha?)", "convert it to grey or RGB")
    return img


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file.

    Args:
        path: image file.

    Returns:
        uint8 (H, W, 1 or 3), BGR.

    Raises:
        ImageFileError: as :func:`decode_image`, or the file cannot be opened.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as err:
        raise ImageFileError(path, err.strerror or str(err), "check the path and its permissions") from err
    return decode_image(content, path)


def to_grey(img: np.ndarray, mode: str = "y") -> np.ndarray:
    """One channel from three, in integer arithmetic, so the result does not depend on the machine.

    Args:
        img: uint8 (H, W, 3), BGR.
        mode: ``y`` = Y of MATLAB's ``rgb2ycbcr`` (BT.601, 16..235), which the JPEG-artifact literature uses;
            ``luma`` = BT.601 luma over the full range, in 15-bit fixed point as OpenCV's BGR2GRAY has it.

    Returns:
        uint8 (H, W, 1).

    Raises:
        ValueError: unknown mode.
    """
    if mode not in GREY_MODES:
        raise ValueError(f"unknown grey conversion {mode!r}; known: {', '.join(GREY_MODES)}")
    pixels = img.astype(np.int64)
    if mode == "y":  # 16 + (65.481 R + 128.553 G + 24.966 B) / 255, rounded
        grey = 16 + (pixels @ np.array([24966, 128553, 65481]) + 127500) // 255000
    else:
        grey = (pixels @ np.array([3735, 19235, 9798]) + (1 << 14)) >> 15
    return grey.astype(np.uint8)[..., None]


def match_channels(img: np.ndarray, channels: int, mode: str = "y") -> np.ndarray:
    """Convert (H, W, 1 or 3) to the wanted number of channels; grey becomes colour by repetition.

    Args:
        img: uint8 (H, W, 1 or 3), BGR.
        channels: 1 or 3.
        mode: see :func:`to_grey`.

    Returns:
        uint8 (H, W, channels).

    Raises:
        ValueError: ``channels`` is neither 1 nor 3, or the mode is unknown.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if img.shape[2] == channels:
        return img
    return np.repeat(img, 3, axis=2) if channels == 3 else to_grey(img, mode)


def list_images(folder: str | os.PathLike) -> list[Path]:
    """Image files of a folder (not of its sub-folders), sorted by name.

    Raises:
        FileNotFoundError: no such folder.
        ImageFileError: the folder holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("."))
    if not files:
        raise ImageFileError(folder, f"no image in it ({', '.join(IMAGE_SUFFIXES)})", "check the path")
    return files


def write_image(path: str | os.PathLike, img: np.ndarray) -> None:
    """Write an image losslessly as PNG, atomically.

    Args:
        path: target; its suffix must be ``.png``.
        img: uint8 (H, W[, 1 or 3]), BGR.

    Raises:
        ValueError: another suffix.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: images are written as .png")
    _, content = cv2.imencode(".png", img)
    write_bytes(path, content.tobytes())
