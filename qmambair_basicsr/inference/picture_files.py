"""Writing pictures from rows as they come, with their metadata, whole or not at all.

PNG and TIFF take each strip and forget it; Pillow's formats hold the picture until the last row (4 bytes a pixel).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from ..files import replaced
from ..strict import did_you_mean
from . import provenance
from .pictures import About
from .png_stream import write_png

__all__ = ["ENDINGS", "FORMATS", "Format", "Layout", "format_of", "write_picture"]


@dataclass(frozen=True)
class Format:
    """What a format of files can hold.

    Attributes:
        name: Pillow's.
        modes: of pixels, the preferred one for others first.
        sixteen: also with 16 bits per sample.
        side: most pixels along a side.
        lossy: written with a quality.
    """

    name: str
    modes: tuple[str, ...]
    sixteen: bool = False
    side: int = 2**31 - 1
    lossy: bool = False


FORMATS = {
    "PNG": Format("PNG", ("RGBA", "RGB", "LA", "L"), sixteen=True),
    "TIFF": Format("TIFF", ("RGBA", "RGB", "LA", "L", "CMYK"), sixteen=True),
    "JPEG": Format("JPEG", ("RGB", "L", "CMYK"), side=65500, lossy=True),
    "WEBP": Format("WEBP", ("RGBA", "RGB"), side=16383, lossy=True),
    "AVIF": Format("AVIF", ("RGBA", "RGB"), side=65535, lossy=True),
    "HEIF": Format("HEIF", ("RGBA", "RGB", "LA", "L"), side=65535, lossy=True),
    "BMP": Format("BMP", ("RGB", "L")),
    "PPM": Format("PPM", ("RGB", "L")),
}
ENDINGS = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
}


@dataclass(frozen=True)
class Layout:
    """What is written.

    Attributes:
        mode: of the pixels, one of the format's.
        width, height: in pixels.
        sixteen: 16 bits per sample.
        quality: 1 to 100, of formats that lose something.
    """

    mode: str
    width: int
    height: int
    sixteen: bool = False
    quality: int = 95


def can_write(name: str) -> bool:
    """Whether the installed Pillow writes a format of ours."""
    Image.init()
    return name in Image.SAVE or name in ("PNG", "TIFF")


def format_of(ending: str) -> Format:
    """The format of a file's ending (with or without its dot).

    Raises:
        ValueError: none that is written here.
    """
    ending = f".{ending.lower().removeprefix('.')}"
    if ending not in ENDINGS:
        known = ", ".join(e.removeprefix(".") for e in ENDINGS)
        raise ValueError(
            f"{ending.removeprefix('.')!r} is no ending of pictures{did_you_mean(ending, ENDINGS)}; use {known}"
        )
    if not can_write(ENDINGS[ending]):
        raise ValueError(f"the installed Pillow writes no {ENDINGS[ending]}; install its plugin, or use another ending")
    return FORMATS[ENDINGS[ending]]


def mode_in(wanted: Format, mode: str) -> str:
    """The mode that a picture of ``mode`` is written in."""
    if mode in wanted.modes:
        return mode
    colour = "L" if mode in ("L", "LA") else "RGB"
    with_alpha = {"L": "LA", "RGB": "RGBA"}[colour]
    choices = [with_alpha, "RGBA"] if mode in ("LA", "RGBA") else []
    return next(choice for choice in (*choices, colour, "RGB") if choice in wanted.modes)


def write_picture(
    path: str | os.PathLike,
    strips: Iterable[np.ndarray],
    wanted: Format,
    layout: Layout,
    about: About,
    record: provenance.Record | None = None,
) -> None:
    """Write a picture.

    Args:
        path: destination; nothing is there until all is written.
        strips: (h, width, channels) uint8, or uint16 where ``layout.sixteen``; from top to bottom.
        wanted: its format.
        layout: its size and kind.
        about: metadata.
        record: what the picture was made from; kept in the file.

    Raises:
        ValueError: what the format has no room for.
        OSError: it cannot be written; the message names ``path``.
    """
    if max(layout.width, layout.height) > wanted.side:
        raise ValueError(
            f"{layout.width} x {layout.height} pixels: {wanted.name} has room for {wanted.side} along a side; use --ext png"
        )
    exif = about.exif_bytes(layout.width, layout.height)
    xmp = None if record is None else provenance.as_xmp(record)
    with replaced(path) as part:
        if wanted.name == "PNG":
            with open(part, "wb") as file:
                size = layout.width, layout.height
                write_png(file, strips, layout.mode, *size, layout.sixteen, about.icc, exif, about.dpi, xmp)
        elif wanted.name == "TIFF":
            _write_tiff(part, strips, layout, about, xmp)
        else:
            _write_by_pillow(part, strips, wanted, layout, about, exif, xmp)
            if record is not None and wanted.name in ("BMP", "PPM"):
                _say(part, wanted.name, provenance.as_text(record).encode())


def _write_by_pillow(
    path: Path,
    strips: Iterable[np.ndarray],
    wanted: Format,
    layout: Layout,
    about: About,
    exif: bytes | None,
    xmp: bytes | None,
) -> None:
    image = Image.new(layout.mode, (layout.width, layout.height))
    top = 0
    for strip in strips:
        image.paste(Image.fromarray(strip[..., 0] if strip.shape[2] == 1 else strip, layout.mode), (0, top))
        top += len(strip)
    options: dict = {"icc_profile": about.icc} if about.icc else {}
    if exif and (wanted.name != "JPEG" or len(exif) < 65527):  # a segment's room
        options["exif"] = b"Exif\x00\x00" + exif
    if about.dpi and wanted.name in ("JPEG", "BMP"):
        options["dpi"] = tuple(about.dpi)
    if wanted.name == "JPEG":
        options |= {"quality": layout.quality, "subsampling": 0, "progressive": about.progressive}
        if xmp:  # Pillow before 11 has no option for it: a segment APP1 of JPEG
            content = b"http://ns.adobe.com/xap/1.0/\x00" + xmp
            options["extra"] = struct.pack(">BBH", 0xFF, 0xE1, len(content) + 2) + content
    elif wanted.name in ("WEBP", "AVIF", "HEIF"):
        options |= {"quality": layout.quality} | ({"xmp": xmp} if xmp else {})
        if wanted.name == "WEBP" and layout.quality == 100:
            options |= {"lossless": True, "exact": True}
    image.save(path, format=wanted.name, **options)


def _say(path: Path, kind: str, text: bytes) -> None:
    """Put a line of text into a file whose format has metadata for none: a comment of a PPM, behind a BMP's pixels."""
    if kind == "BMP":
        with open(path, "ab") as file:
            file.write(b"\n" + text + b"\n")
        return
    with replaced(path) as part, open(path, "rb") as before, open(part, "wb") as after:
        after.write(before.readline() + b"# " + text + b"\n")
        shutil.copyfileobj(before, after)


_ROWS = 64  # of a TIFF's strip
_INNER = {34666: (34665, ExifTags.IFD.Exif), 34854: (34853, ExifTags.IFD.GPSInfo)}
"""Stand-in for a tag that tifffile does not write -> the tag, one less so that the order stays, and what it points to."""


def _write_tiff(path: Path, strips: Iterable[np.ndarray], layout: Layout, about: About, xmp: bytes | None) -> None:
    """A TIFF of strips compressed by zlib behind horizontal differences (TIFF 6.0, section 14)."""
    import tifffile

    kinds = {"L": ("minisblack", []), "LA": ("minisblack", ["unassalpha"]), "RGB": ("rgb", [])}
    kinds |= {"RGBA": ("rgb", ["unassalpha"]), "CMYK": ("separated", [])}
    photometric, extra = kinds[layout.mode]
    kind = np.dtype(np.uint16 if layout.sixteen else np.uint8)
    channels = len(layout.mode)
    big = layout.width * layout.height * channels * kind.itemsize > 3 << 30
    words, inner = _tiff_tags(about, layout)
    packet = [(700, 1, len(xmp), xmp, True)] if xmp else []
    inner = {} if big else inner  # they are written with 32-bit offsets
    with tifffile.TiffWriter(path, bigtiff=big) as writer:
        writer.write(
            _encoded(_regrouped(strips, _ROWS)),
            shape=(layout.height, layout.width, *([channels] if channels > 1 else [])),
            dtype=kind,
            photometric=photometric,
            extrasamples=extra or None,
            planarconfig="contig" if channels > 1 else None,
            rowsperstrip=min(_ROWS, layout.height),
            compression="zlib",
            predictor=2,
            resolution=about.dpi,
            resolutionunit="INCH" if about.dpi else None,
            iccprofile=about.icc,
            metadata=None,
            software=False,
            extratags=[*packet, *words, *((code, 4, 1, 0, True) for code in inner)],
        )
    if inner:
        _point_to(path, inner)


def _regrouped(strips: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows, so many at a time; fewer at the end."""
    held: list[np.ndarray] = []
    count = 0
    for strip in strips:
        held.append(strip)
        count += len(strip)
        if count >= rows:
            whole = np.concatenate(held)
            for start in range(0, count - rows + 1, rows):
                yield whole[start : start + rows]
            rest = count % rows
            held, count = ([whole[count - rest :].copy()] if rest else []), rest
    if count:
        yield np.concatenate(held)


def _encoded(strips: Iterable[np.ndarray]) -> Iterator[bytes]:
    for strip in strips:
        differences = strip.copy()
        differences[:, 1:] -= strip[:, :-1]
        yield zlib.compress(differences.tobytes(), 6)


def _tiff_tags(about: About, layout: Layout) -> tuple[list[tuple], dict[int, dict]]:
    """EXIF as tags of a TIFF: those that are plain text, and the contents of those that point to more tags."""
    if about.exif is None:
        return [], {}
    text = [(tag, str(value)) for tag, value in about.exif.items() if isinstance(value, str) and tag < 0x8769]
    words = [(tag, 2, 0, value.encode("utf-8", "replace") + b"\x00", True) for tag, value in text]
    words = [(code, kind, len(value), value, once) for code, kind, _, value, once in words]
    inner = {code: dict(about.exif.get_ifd(ifd)) for code, (_, ifd) in _INNER.items()}
    for tags in inner.values():
        for tag, value in ((0xA002, layout.width), (0xA003, layout.height)):
            if tag in tags:
                tags[tag] = value
        tags.pop(0xA005, None)  # interoperability, which points further
    return words, {code: tags for code, tags in inner.items() if tags}


def _point_to(path: Path, inner: dict[int, dict]) -> None:
    """Append tags to a TIFF and let its stand-ins point to them."""
    import tifffile

    with tifffile.TiffFile(path, mode="r+b") as tiff:
        file, order = tiff.filehandle, tiff.byteorder
        for code, tags in inner.items():
            entry = tiff.pages.first.tags[code]
            file.seek(0, io.SEEK_END)
            at = file.tell() + file.tell() % 2
            block = TiffImagePlugin.ImageFileDirectory_v2(
                b"II\x2a\x00\x00\x00\x00\x00" if order == "<" else b"MM\x00\x2a\x00\x00\x00\x00"
            )
            for tag, value in tags.items():
                with contextlib.suppress(Exception):  # a camera's entry of a kind that Pillow cannot write
                    block[tag] = value
            content = block.tobytes(at)
            file.seek(at)
            file.write(content)
            file.seek(entry.offset)
            file.write(struct.pack(f"{order}HHII", _INNER[code][0], 4, 1, at))
