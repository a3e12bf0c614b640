"""The steps of ``prepare_data`` on one image, and the folders of their results.

Every function takes a :class:`~qmambair_basicsr.data.batch.Task`, reads its source and writes its outputs
atomically; the folder functions are the layout that the option files expect.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_bytes
from .batch import Task
from .image_files import ImageFileError, match_channels, read_image, write_image
from .jpeg_codec import jpeg_roundtrip
from .matlab_resize import bicubic_downscale, modcrop
from .noise import add_gaussian_noise

# -- layout ----------------------------------------------------------------------------------------------------


def hr_folder(root: Path, name: str, *, sub: bool = False) -> Path:
    """Images of a set; ``sub`` = the sub-images cut from them."""
    return root / name / ("HR_sub" if sub else "HR")


def lr_folder(root: Path, name: str, scale: int, *, sub: bool = False) -> Path:
    """Bicubic LR images of a set; files are named ``<stem>x<scale>.png``."""
    return root / name / ("LR_bicubic_sub" if sub else "LR_bicubic") / f"X{scale}"


def lr_task(file: Path, root: Path, name: str, scales: Sequence[int]) -> Task:
    """Bicubic reductions of one image, for :func:`make_lr`."""
    outputs = tuple(lr_folder(root, name, scale) / f"{file.stem}x{scale}.png" for scale in scales)
    return Task(file, outputs, {"scales": tuple(scales)})


def grey_folder(root: Path, name: str) -> Path:
    """Y channel of a set: ground truth of grey JPEG pairs."""
    return root / name / "HR_grey"


def jpeg_folder(root: Path, name: str, quality: int, colour: str, subsampling: str) -> Path:
    """Images after JPEG compression, stored as PNG under their own names."""
    kind = "grey" if colour == "grey" else f"rgb{subsampling.replace(':', '')}"
    return root / name / f"JPEG_{kind}" / f"q{quality}"


def noise_folder(root: Path, name: str, sigma: float, kind: str) -> Path:
    """Noisy images: ``npy`` as the protocol has them, ``png`` clipped and rounded to 8 bits."""
    return root / name / f"noise_{kind}" / f"s{sigma:g}"


# -- one image -------------------------------------------------------------------------------------------------


def import_image(task: Task) -> None:
    """Copy a PNG byte for byte once it is known to decode; store any other format, or a cropped image, as PNG.

    An image smaller than ``options["least"]``, of which nothing could be made, is refused.
    """
    img = read_image(task.source)
    least = task.options.get("least", 1)
    if min(img.shape[:2]) < least:
        raise ImageFileError(task.source, f"{img.shape[0]} x {img.shape[1]} pixels are too small for scale {least}")
    multiple = task.options.get("modcrop", 1)
    if multiple > 1:
        try:
            write_image(task.outputs[0], modcrop(img, multiple))
        except ValueError as err:  # smaller than the multiple
            raise ImageFileError(task.source, str(err)) from err
    elif task.source.suffix.lower() == ".png":
        write_bytes(task.outputs[0], task.source.read_bytes())
    else:
        write_image(task.outputs[0], img)


def make_lr(task: Task) -> None:
    """Bicubic LR images, one output per scale in ``options["scales"]``."""
    img = read_image(task.source)
    for scale, path in zip(task.options["scales"], task.outputs, strict=True):
        try:
            lr = bicubic_downscale(img, scale)
        except ValueError as err:  # smaller than the scale
            raise ImageFileError(task.source, str(err)) from err
        write_image(path, lr)


def make_jpeg(task: Task) -> None:
    """JPEG images, one output per quality; with ``options["grey"]`` the last output is the grey ground truth."""
    img = read_image(task.source)
    outputs = list(task.outputs)
    if task.options["grey"]:
        img = match_channels(img, 1)
        write_image(outputs.pop(), img)
    else:
        img = match_channels(img, 3)
    for quality, path in zip(task.options["qualities"], outputs, strict=True):
        write_image(path, jpeg_roundtrip(img, quality, task.options["subsampling"]))


def make_noise(task: Task) -> None:
    """Images with the noise of the test protocol, one output per sigma; float32 BGR ``.npy`` or 8-bit PNG."""
    img = match_channels(read_image(task.source), 3)
    for sigma, path in zip(task.options["sigmas"], task.outputs, strict=True):
        noisy = add_gaussian_noise(img, sigma)
        if path.suffix == ".png":
            write_image(path, np.clip(np.floor(noisy * 255 + 0.5), 0, 255).astype(np.uint8))
        else:
            content = io.BytesIO()
            np.save(content, noisy)
            write_bytes(path, content.getvalue())


# -- sub-images ------------------------------------------------------------------------------------------------


def _starts(length: int, size: int, step: int, unit: int) -> list[int]:
    """Where windows of ``size`` begin: every ``step``, and one flush with the end (rounded down to ``unit``)."""
    last = (length - size) // unit * unit
    return [*range(0, last, step), last]


def windows(height: int, width: int, size: int, step: int, unit: int) -> Iterator[tuple[int, int]]:
    """Top-left corners of the sub-images of an image; an image smaller than ``size`` gives none."""
    if min(height, width) >= size:
        for top in _starts(height, size, step, unit):
            for left in _starts(width, size, step, unit):
                yield top, left


def sub_image_task(file: Path, root: Path, name: str, scales: Sequence[int], size: int, step: int) -> Task:
    """The task that cuts one image and its LR images; its outputs follow from the image's size.

    Args:
        file: HR image.
        root, name: the set.
        scales: which LR images to cut along; may be empty.
        size: side of an HR sub-image in pixels.
        step: distance between two of them.
    """
    unit = math.lcm(*scales) if scales else 1
    try:
        with Image.open(file) as img:  # reads the header only
            width, height = img.size
    except OSError:
        width = height = size  # plan one window: the task itself will say what is wrong with the file
    corners = tuple(windows(height, width, size, step, unit))
    outputs = []
    for index in range(1, len(corners) + 1):
        outputs.append(hr_folder(root, name, sub=True) / f"{file.stem}_s{index:03d}.png")
        outputs += [lr_folder(root, name, s, sub=True) / f"{file.stem}_s{index:03d}x{s}.png" for s in scales]
    lr_files = {s: lr_folder(root, name, s) / f"{file.stem}x{s}.png" for s in scales}
    options = {"corners": corners, "size": size, "lr_files": lr_files}
    return Task(file, tuple(outputs), options, tuple(lr_files.values()), ("corners", "size"))


def cut_sub_images(task: Task) -> None:
    """Cut an HR image and its LR images into windows that show the same part of the scene."""
    sources = {1: read_image(task.source)}
    for scale, file in task.options["lr_files"].items():
        sources[scale] = read_image(file)
        if sources[scale].shape[:2] != tuple(n // scale for n in sources[1].shape[:2]):
            raise ImageFileError(
                file, f"does not measure 1/{scale} of {task.source}", "make it again with prepare_data sr"
            )
    outputs, size = iter(task.outputs), task.options["size"]
    for top, left in task.options["corners"]:
        for scale, img in sources.items():
            rows = slice(top // scale, (top + size) // scale)
            columns = slice(left // scale, (left + size) // scale)
            write_image(next(outputs), img[rows, columns])


def remove_other_sub_images(task: Task) -> None:
    """Delete sub-images of a task's image that were cut with other options and that the task has not replaced."""
    name = re.compile(rf"{re.escape(task.source.stem)}_s\d{{3,}}(x\d+)?\.png")
    for folder in {path.parent for path in task.outputs}:
        for file in folder.iterdir():
            if name.fullmatch(file.name) and file not in task.outputs:
                file.unlink()
