"""Folders of images as tensors, paired with their ground truth, and PSNR between results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from basicsr.metrics import calculate_metric
from torch import Tensor

from ..data.base import image_tensor
from ..data.image_files import list_images, match_channels, read_image
from ..strict import did_you_mean
from .tiling import middle


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        name: file name without suffix; with it where another image differs in the suffix only.
        image: input of the network, (1, C, H, W) in [0, 1], RGB or grey.
        truth: ground truth, uint8 (H * scale, W * scale, C) BGR or grey, or None.
    """

    name: str
    image: Tensor
    truth: np.ndarray | None


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, C), BGR or grey -> (1, C, H, W) in [0, 1], RGB or grey."""
    return image_tensor(image).unsqueeze(0)


def to_image(tensor: Tensor) -> np.ndarray:
    """(1, C, H, W) -> uint8 (H, W, C), BGR or grey; values outside [0, 1] are clipped."""
    return tensor[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()[..., ::-1].copy()


def middles(folder: str | Path, channels: int, height: int, width: int, count: int) -> Iterator[Tensor]:
    """The middles, of at most height x width, of the first ``count`` images of a folder, (1, channels, h, w) in [0, 1].

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no image in it, or one that cannot be read.
    """
    for path in list_images(folder)[:count]:
        yield middle(to_tensor(match_channels(read_image(path), channels)), height, width)


def partners(files: Sequence[Path], truths: Sequence[Path], scale: int, count: int | None = None) -> dict[Path, Path]:
    """The ground truth of every input.

    A set's inputs have the names of their ground truth, or the same with ``x<scale>`` behind them. ``photox2`` may be
    either, where there are both ``photo`` and ``photox2``: then the rule that fits all inputs decides.

    Args:
        files: all inputs of the set, which decide about the rule together.
        truths: all ground truth.
        scale: output pixels per input pixel.
        count: find those of the first so many inputs only.

    Raises:
        ValueError: no ground truth has an input's name; or several could be it, or one is that of two inputs.
    """
    named: dict[str, list[Path]] = {}
    for truth in truths:
        named.setdefault(truth.stem, []).append(truth)
    folder, ending = truths[0].parent, f"x{scale}"
    by_rule = (
        {file: named.get(file.stem) for file in files},
        {file: named.get(file.stem.removesuffix(ending)) for file in files if file.stem.endswith(ending)},
    )
    whole = [rule for rule in by_rule if len(rule) == len(files) and all(rule.values())]
    found = {}
    for file in files[:count]:
        choices = [rule[file] for rule in (whole or by_rule) if rule.get(file)]
        if not choices:
            known = [truth.stem for truth in truths]
            raise ValueError(
                f"{file.name} has no ground truth of the same name in {folder}{did_you_mean(file.stem, known)}"
            )
        candidates = [truth for choice in choices for truth in choice]
        if len(choices) == 1:  # they differ in their ending: the one with the input's
            candidates = [truth for truth in candidates if truth.suffix == file.suffix] or candidates
        if len(candidates) > 1:
            names = " and ".join(truth.name for truth in candidates)
            raise ValueError(f"{names} of {folder} could both be the ground truth of {file}; rename one")
        found[file] = candidates[0]
    for truth, number in Counter(found.values()).items():
        if number > 1:
            names = " and ".join(file.name for file in found if found[file] == truth)
            raise ValueError(f"{truth} is the only ground truth of {names}; rename them, or add the missing one")
    return found


def load_samples(
    inputs: str | Path,
    truths: str | Path | None,
    channels: int,
    scale: int,
    count: int | None = None,
    side: int | None = None,
) -> list[Sample]:
    """Read the images of a folder.

    Args:
        inputs: folder of inputs.
        truths: folder of ground truth: the same names, or without the ending ``x<scale>`` of the inputs; or None. All
            inputs follow one of the two rules (see :func:`partners`).
        channels: 1 or 3.
        scale: output pixels per input pixel.
        count: take only the first so many.
        side: take only the middle of each, of this height and width.

    Returns:
        Sorted by name.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an image is unreadable, smaller than ``side``, has no ground truth, one of another size, or two files
            could be it.
    """
    files = list_images(inputs)
    originals = {} if truths is None else partners(files, list_images(truths), scale, count)
    shared = {stem for stem, number in Counter(file.stem for file in files).items() if number > 1}
    samples = []
    for file in files[:count]:
        image = match_channels(read_image(file), channels)
        if side is not None and min(image.shape[:2]) < side:
            raise ValueError(f"{file} is {image.shape[1]}x{image.shape[0]}, smaller than {side}x{side}")
        truth = None
        if truths is not None:
            original = originals[file]
            truth = match_channels(read_image(original), channels)
            height, width = image.shape[0] * scale, image.shape[1] * scale
            if truth.shape[0] < height or truth.shape[1] < width:
                raise ValueError(
                    f"{original} is {truth.shape[1]}x{truth.shape[0]}, {scale} times {file.name} is {width}x{height}"
                )
            truth = truth[:height, :width]
        if side is not None:
            top, left = ((n - side) // 2 for n in image.shape[:2])
            image = image[top : top + side, left : left + side]
            if truth is not None:
                truth = truth[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        samples.append(Sample(file.name if file.stem in shared else file.stem, to_tensor(image), truth))
    return samples


def psnr_between(output: Tensor, reference: Tensor) -> float:
    """PSNR in dB of two results in [0, 1] before rounding and clipping.

    Infinite when they are equal, NaN when one of them holds NaN or infinity.
    """
    error = (output.double() - reference.double()).square().mean().item()
    if not math.isfinite(error):
        return math.nan
    return math.inf if error == 0 else -10 * math.log10(error)


def psnr_of(output: Tensor, truth: np.ndarray, crop: int, on_y: bool) -> float:
    """PSNR in dB of a result, rounded to 8 bits, against the ground truth.

    Args:
        output: (1, C, H, W).
        truth: uint8 (H, W, C).
        crop: border pixels left out.
        on_y: on the Y channel of a colour image.

    Raises:
        MetricError: nothing is left by the border.
    """
    on_y = on_y and truth.shape[2] == 3
    options = {"type": "calculate_psnr", "crop_border": crop, "test_y_channel": on_y}
    return float(calculate_metric({"img": to_image(output), "img2": truth}, options))


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None
