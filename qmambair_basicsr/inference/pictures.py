"""Reading pictures as people have them: any colour mode, 8 or 16 bits, turned upright, with what belongs to them.

Pillow opens everything; where it would round 16 bits to 8 (colour PNG and TIFF), OpenCV reads the samples. Metadata are
Pillow's as well: EXIF (orientation applied and reset to upright), ICC profile and resolution.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from ..data.image_files import ImageFileError
from . import memory
from .tiff_files import in_planes, pages_of, planes_of, samples_of, white_is_zero

__all__ = ["ALPHA", "COLOURS", "About", "Picture", "Size", "read_picture", "read_size", "register_plugins"]

COLOURS = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3, "CMYK": 3}
"""Mode -> channels in front that a network restores together; what follows is restored as a grey picture of its own."""
ALPHA = ("LA", "RGBA")
_BYTES_PER_PIXEL = 12  # of decoding: Pillow's copy, the array, one more while it is turned

# EXIF entries of a TIFF that describe the picture; the others describe how the file stores it
_DESCRIBING = (
    *(0x010E, 0x010F, 0x0110, 0x0112, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825),
    *range(0x9C9B, 0x9CA0),
)
_FIRST = ("MPO", "HEIF")  # phones' files: the first picture is the photograph, others belong to it
_MOVING = ("GIF", "PNG", "WEBP", "AVIF")
_THUMBNAIL = (0x0201, 0x0202)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What belongs to a picture besides its pixels.

    Attributes:
        exif: as Pillow writes it, orientation upright; None without.
        icc: profile of its colours; None without.
        dpi: pixels per inch, (x, y); None where the file does not say.
        progressive: of a JPEG.
        notes: what could not be read, in words.
    """

    exif: Image.Exif | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    progressive: bool = False
    notes: tuple[str, ...] = ()

    def exif_bytes(self, width: int, height: int) -> bytes | None:
        """EXIF of a result of this size, without the ``Exif`` mark in front; None without, or where it cannot be written."""
        if self.exif is None:
            return None
        exif = self.exif
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        for tag, value in ((ExifTags.Base.ExifImageWidth, width), (ExifTags.Base.ExifImageHeight, height)):
            if tag in inner:
                inner[tag] = value
        try:
            return exif.tobytes().removeprefix(b"Exif\x00\x00")
        except Exception as err:  # a camera's entries that Pillow cannot put together again end in errors of any kind
            logger.warning("its EXIF cannot be written (%s) and is left out", err)
            return None


@dataclass(frozen=True)
class Size:
    """A picture's size, upright, read from the head of its file.

    Attributes:
        width, height: in pixels.
        format: Pillow's name of the file's format.
        mode: of the pixels that :func:`read_picture` returns.
        sixteen: samples of 16 bits.
    """

    width: int
    height: int
    format: str
    mode: str
    sixteen: bool


@dataclass(frozen=True)
class Picture:
    """One picture, upright.

    Attributes:
        pixels: (H, W, C) uint8 or uint16.
        mode: ``L``, ``LA``, ``RGB``, ``RGBA`` or ``CMYK``, in this order of channels.
        format: Pillow's name of the file's format: ``PNG``, ``JPEG``, ``TIFF`` ...
        about: metadata.
    """

    pixels: np.ndarray
    mode: str
    format: str
    about: About = field(default_factory=About)

    def in_mode(self, mode: str) -> Picture:
        """The picture in a mode that a format can hold: on white instead of transparent, RGB instead of CMYK."""
        if mode == self.mode:
            return self
        if self.mode == "CMYK":
            pixels, icc = _cmyk_to_rgb(self.pixels, self.about.icc)
            return replace(self, pixels=pixels, mode="RGB", about=replace(self.about, icc=icc)).in_mode(mode)
        if self.mode in ALPHA and mode not in ALPHA:
            return replace(self, pixels=_on_white(self.pixels), mode=self.mode[:-1]).in_mode(mode)
        if self.mode in ("L", "LA") and mode in ("RGB", "RGBA"):
            pixels = np.concatenate([self.pixels[..., :1]] * 3 + [self.pixels[..., 1:]], axis=2)
            # a profile of grey says nothing about three colours
            changed = replace(self, pixels=pixels, mode="RGBA" if self.mode == "LA" else "RGB")
            return replace(changed, about=replace(self.about, icc=None)).in_mode(mode)
        raise ValueError(f"a picture of mode {self.mode} cannot become {mode}")

    def in_eight_bits(self) -> Picture:
        """The picture with 8 bits per sample."""
        if self.pixels.dtype == np.uint8:
            return self
        return replace(self, pixels=((self.pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _on_white(pixels: np.ndarray) -> np.ndarray:
    whole = np.iinfo(pixels.dtype).max
    colour, alpha = pixels[..., :-1].astype(np.float32), pixels[..., -1:].astype(np.float32) / whole
    return np.rint(colour * alpha + whole * (1 - alpha)).astype(pixels.dtype)


def _cmyk_to_rgb(pixels: np.ndarray, icc: bytes | None) -> tuple[np.ndarray, bytes | None]:
    """RGB through the inks' profile where there is one, and the profile of the result."""
    image = Image.fromarray(pixels, "CMYK") if pixels.dtype == np.uint8 else None
    if image is None:
        raise ValueError("16-bit CMYK can be written as TIFF only")
    if icc:
        with contextlib.suppress(Exception):  # ImageCms raises its own error for profiles it cannot use
            import io

            from PIL import ImageCms

            srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            made = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), srgb, outputMode="RGB")
            return np.asarray(made), srgb.tobytes()
    return np.asarray(image.convert("RGB")), None


def register_plugins() -> None:
    """Let Pillow read HEIF where its plugin (pillow-heif) is installed; AVIF is part of Pillow or of its plugin."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_avif  # noqa: F401


class _Unsuitable(Exception):
    """A picture that cannot be restored as it is: why, and what to do."""


_EIGHT = "convert it to 8 or 16 bits per sample, such as a PNG"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file in Pillow, whatever its size; everything that goes wrong inside is an ImageFileError."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # panoramas are no attack; memory is looked at below
    try:
        if path.exists() and not path.is_file():
            raise ImageFileError(path, "no file to read from (a folder, a pipe or a device)")
        if path.stat().st_size == 0:
            raise ImageFileError(path, "empty file (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that Pillow could not read; the pixels are what counts
            with Image.open(path) as image:
                yield image
    except ImageFileError:
        raise
    except _Unsuitable as err:
        raise ImageFileError(path, *err.args) from err
    except Image.UnidentifiedImageError as err:
        samples = samples_of(path)
        if samples is not None:
            raise ImageFileError(path, f"a TIFF of {samples}, which Pillow cannot read", _EIGHT) from err
        raise ImageFileError(path, "not an image that Pillow can read") from err
    except MemoryError as err:
        raise ImageFileError(path, "not enough memory to decode it", "free some") from err
    # damaged files end in errors of any kind: SyntaxError (PNG), struct.error, zlib.error, ValueError, EOFError ...
    except Exception as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else " ".join(str(err).split())
        raise ImageFileError(path, reason[:200] or type(err).__name__) from err
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _sixteen(image: Image.Image) -> bool:
    """Whether samples have 16 bits, also where Pillow would read 8 of them."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return True
    if image.format == "TIFF":
        return max(np.atleast_1d(image.tag_v2.get(258, 8)).tolist()) == 16
    return any(";16" in str(part) for tile in image.tile for part in np.atleast_1d(np.array(tile[-1], dtype=object)))


def _mode(image: Image.Image) -> str:
    """The mode of the pixels that we work with.

    Raises:
        ValueError: there is none.
    """
    mode = image.mode
    if mode == "F":
        raise _Unsuitable("samples in floating point", _EIGHT)
    if mode.startswith("I"):
        return "L"
    if image.format == "PNG" and any("LA;16" in str(tile[-1]) for tile in image.tile):
        return "LA"
    if "transparency" in image.info and mode in ("1", "L", "RGB", "P"):
        return "LA" if mode in ("1", "L") else "RGBA"
    known = {
        "1": "L",
        "P": "RGB",
        "PA": "RGBA",
        "La": "LA",
        "RGBa": "RGBA",
        "YCbCr": "RGB",
        "HSV": "RGB",
        "RGBX": "RGB",
    }
    mode = known.get(mode, mode)
    if mode not in COLOURS:
        raise _Unsuitable(f"colours of mode {mode}", "convert it to RGB")
    return mode


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; without decoding the pixels where they are not yet."""
    if image.format == "PNG" and image.tile and "exif" not in image.info:  # Pillow would look for it behind the pixels
        return 1
    try:
        turned = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF that cannot be read says nothing
        return 1
    return turned if 1 <= turned <= 8 else 1


def read_size(path: str | os.PathLike) -> Size:
    """Size and kind of a picture, without decoding it.

    Raises:
        ImageFileError: no image, more than one, or of a kind that cannot be restored.
    """
    with _opened(Path(path)) as image:
        return _size(image)


def _size(image: Image.Image) -> Size:
    frames = pages_of(image) if image.format == "TIFF" else getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _FIRST and getattr(image, "is_animated", True):
        what = "an animation of {} pictures" if image.format in _MOVING else "a file of {} pages"
        raise _Unsuitable(what.format(frames), "give them one by one")
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    needed = width * height * _BYTES_PER_PIXEL
    if needed > memory.available():
        raise _Unsuitable(
            f"{width} x {height} pixels need {needed >> 20:,} MB to decode, more than is free", "free some"
        )
    return Size(width, height, "JPEG" if image.format == "MPO" else image.format, _mode(image), _sixteen(image))


def read_picture(path: str | os.PathLike) -> Picture:
    """Read one picture; of several in a phone's file (MPO, HEIF) the first.

    Raises:
        ImageFileError: as :func:`read_size`, or damaged.
    """
    path = Path(path)
    with _opened(path) as image:
        size = _size(image)
        image.load()  # also where OpenCV reads the samples: it returns what there is of a truncated file, Pillow raises
        turned = _orientation(image)
        about = _about(image, turned)
        if size.sixteen and not image.mode.startswith("I"):
            planes = image.format == "TIFF" and in_planes(image)
            pixels = planes_of(path) if planes else _read_sixteen(path, size.mode)
        elif size.sixteen:
            samples = np.asarray(image)
            if image.format == "TIFF" and white_is_zero(image):  # which Pillow heeds in 8 bits only
                samples = 65535 - samples.astype(np.int64)
            if samples.min() < 0 or samples.max() > 65535:
                raise _Unsuitable("samples of 32 bits", _EIGHT)
            pixels = samples.astype(np.uint16)[..., None]
        else:
            image = image if image.mode == size.mode else image.convert(size.mode)
            pixels = np.asarray(image)
            pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return Picture(_upright(pixels, turned), size.mode, size.format, about)


def _read_sixteen(path: Path, mode: str) -> np.ndarray:
    """(H, W, C) uint16 of a colour file."""
    content = np.fromfile(path, np.uint8)  # imread cannot open every name on Windows
    samples = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise _Unsuitable("16 bits per sample in a form that OpenCV cannot read", "convert it to PNG")
    samples = samples if samples.ndim == 3 else samples[..., None]
    order = {"L": [0], "LA": [0, -1], "RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3], "CMYK": [0, 1, 2, 3]}[mode]
    if samples.shape[2] < len(set(order)):
        raise _Unsuitable(f"{samples.shape[2]} channels of 16 bits, where {mode} has {len(order)}", "convert it to PNG")
    return np.ascontiguousarray(samples[..., order])


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as they are looked at (EXIF orientation 1 to 8)."""
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }.get(orientation)
    return np.ascontiguousarray(pixels if turned is None else turned(pixels))


def _about(image: Image.Image, turned: int) -> About:
    info = image.info
    dpi = info.get("dpi")
    try:
        dpi = (float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 1 else None  # 1 stands for no unit
    except (TypeError, ValueError, ZeroDivisionError):
        dpi = None
    if dpi is not None and turned >= 5:
        dpi = dpi[::-1]
    exif, notes = _exif(image)
    count = getattr(image, "n_frames", 1)
    if image.format in _FIRST and count > 1:
        notes = (*notes, f"the first of {count} pictures in it")
    return About(exif, info.get("icc_profile"), dpi, bool(info.get("progressive")), notes)


def _exif(image: Image.Image) -> tuple[Image.Exif | None, tuple[str, ...]]:
    """EXIF of an upright picture, without what described the file or its thumbnail; and what went wrong."""
    try:
        exif = image.getexif()
        for inner in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            exif.get_ifd(inner)  # read now: the file is closed when they are written
        for tag in list(exif):
            if tag in _THUMBNAIL or (image.format == "TIFF" and tag not in _DESCRIBING):
                del exif[tag]
    except Exception as err:  # damaged EXIF ends in errors of any kind
        return None, (f"its EXIF cannot be read ({err}) and is left out",)
    if not len(exif):
        return None, ()
    if ExifTags.Base.Orientation in exif:
        exif[ExifTags.Base.Orientation] = 1
    return exif, ()
