"""Pictures of every kind that people have, made by Pillow, OpenCV and tifffile; and broken ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageCms, features

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def scene(height: int = 18, width: int = 23, channels: int = 3, whole: int = 255) -> np.ndarray:
    """A smooth picture of uint8 or uint16."""
    y, x = np.mgrid[:height, :width]
    planes = [0.5 + 0.4 * np.sin(x / (4 + c) + c) * np.cos(y / (6 - c)) for c in range(channels)]
    return np.rint(np.stack(planes, -1) * whole).astype(np.uint8 if whole == 255 else np.uint16)


@dataclass(frozen=True)
class Kind:
    """One picture and what its result must be.

    Attributes:
        name: of the file.
        write: makes it.
        mode: of the result.
        size: (width, height) of the upright picture.
        bits: of the result's samples.
        result: name of the result.
        icc, exif, dpi: belongs to it and must to the result.
    """

    name: str
    write: Callable[[Path], None]
    mode: str = "RGB"
    size: tuple[int, int] = (23, 18)
    bits: int = 8
    result: str = ""
    icc: bool = False
    exif: bool = False
    dpi: float | None = None


def _exif(orientation: int | None = None) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.DateTimeOriginal] = "2024:05:06 07:08:09"
    inner[ExifTags.Base.ExifImageWidth] = 23
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    return exif


def _pil(mode: str = "RGB", height: int = 18, width: int = 23, **options) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if mode in ("P", "1"):
            image = Image.fromarray(scene(height, width)).convert(mode)
        else:
            array = scene(height, width, len(mode))
            image = Image.fromarray(array[..., 0] if len(mode) == 1 else array, mode)
        image.save(path, **options)

    return write


def _turned(orientation: int) -> Kind:
    """A picture that EXIF turns: stored so that it is ``scene()`` when it is upright."""
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    forms = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: np.rot90(a, 1),
    }

    def write(path: Path) -> None:
        Image.fromarray(np.ascontiguousarray(forms[back](scene()))).save(path, exif=_exif(orientation), quality=95)

    return Kind(f"turned{orientation}.jpg", write, exif=True)


def _png16(channels: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        cv2.imwrite(
            str(path), scene(channels=channels, whole=65535)[..., [2, 1, 0, 3][:channels] if channels > 2 else 0]
        )

    return write


def _tiff16(channels: int, **options) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        samples = scene(channels=channels, whole=65535)
        options.setdefault("photometric", "rgb" if channels > 2 else "minisblack")
        tifffile.imwrite(path, samples[..., 0] if channels == 1 else samples, metadata=None, **options)

    return write


def _planes(kind: type) -> Callable[[Path], None]:
    """One colour behind the other."""

    def write(path: Path) -> None:
        samples = np.moveaxis(scene(whole=np.iinfo(kind).max), -1, 0)
        tifffile.imwrite(path, samples, photometric="rgb", planarconfig="separate", metadata=None, compression="zlib")

    return write


def _hidden(path: Path) -> None:
    """A grey disc on nothing, under which black is stored."""
    y, x = np.mgrid[:18, :23]
    inside = (y - 9) ** 2 + (x - 11) ** 2 < 36
    pixels = np.zeros((18, 23, 4), np.uint8)
    pixels[inside] = (200, 180, 160, 255)
    Image.fromarray(pixels).save(path)


def kinds() -> list[Kind]:
    """The good ones."""
    found = [
        Kind("grey.png", _pil("L"), "L"),
        Kind("with space and ü 写真.png", _pil()),
        Kind("UPPER.PNG", _pil()),
        Kind("palette.png", _pil("P")),
        Kind("palette transparent.png", _pil("P", transparency=0), "RGBA"),
        Kind("bilevel.png", _pil("1"), "L"),
        Kind("alpha.png", _pil("RGBA"), "RGBA"),
        Kind("grey alpha.png", _pil("LA"), "LA"),
        Kind("hidden.png", _hidden, "RGBA"),
        Kind("profile.png", _pil(icc_profile=SRGB, dpi=(300, 300), exif=_exif()), icc=True, exif=True, dpi=300),
        Kind("sixteen grey.png", _png16(1), "L", bits=16),
        Kind("sixteen.png", _png16(3), bits=16),
        Kind("sixteen alpha.png", _png16(4), "RGBA", bits=16),
        Kind(
            "photo.jpg", _pil(quality=95, icc_profile=SRGB, dpi=(240, 240), exif=_exif()), icc=True, exif=True, dpi=240
        ),
        Kind("progressive.jpeg", _pil(quality=95, progressive=True)),
        Kind("grey.jpg", _pil("L", quality=95), "L"),
        Kind("ink.jpg", _pil("CMYK", quality=95, icc_profile=SRGB), "CMYK", icc=True),
        *(_turned(orientation) for orientation in (2, 3, 4, 5, 6, 7, 8)),
        Kind("eight.tif", _pil(compression="tiff_lzw", icc_profile=SRGB, dpi=(72, 72)), icc=True, dpi=72),
        Kind("sixteen.tiff", _tiff16(3, iccprofile=SRGB, resolution=(150, 150)), bits=16, icc=True, dpi=150),
        Kind("sixteen grey.tif", _tiff16(1), "L", bits=16),
        Kind("planes.tif", _planes(np.uint8)),
        Kind("sixteen planes.tif", _planes(np.uint16), bits=16),
        Kind("white is zero.tif", _tiff16(1, photometric="miniswhite"), "L", bits=16),
        Kind("alpha.tif", _pil("RGBA"), "RGBA"),
        Kind("ink.tif", _pil("CMYK"), "CMYK"),
        Kind("camera.tif", _pil(exif=_exif().tobytes()), exif=True),
        Kind("windows.bmp", _pil()),
        Kind("plain.ppm", _pil()),
        Kind("still.gif", _pil("P"), result="still.png"),
        Kind("one.png", _pil(height=1, width=1), size=(1, 1)),
        Kind("narrow.png", _pil(height=7, width=1), size=(1, 7)),
    ]
    if features.check("webp"):
        found.append(Kind("web.webp", _pil(quality=95, exif=_exif(), icc_profile=SRGB), icc=True, exif=True))
    if features.check("avif"):
        found.append(Kind("phone.avif", _pil(quality=95)))
    return found


def write_broken(folder: Path) -> list[str]:
    """Three files that hold no whole picture; their names."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "no picture.jpg").write_text("this is text")
    whole = folder / "cut.png"
    _pil(height=40, width=40)(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return ["empty.png", "no picture.jpg", "cut.png"]
