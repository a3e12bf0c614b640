"""The registered metrics, BasicSR's and ours, with checked arguments and images.

BasicSR's metrics take ``**kwargs`` and ignore what they do not know, so a misspelt ``test_y_channel`` gives another
figure without a word; a border that leaves nothing gives nan. Importing this module puts a checking function in place of
every registered metric. What it returns is the metric's own result.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import basicsr.metrics  # noqa: F401  (registers BasicSR's)
import numpy as np
from basicsr.utils.registry import METRIC_REGISTRY

from ..strict import unknown
from . import lpips_metric  # noqa: F401  (registers ours)
from .perceptual import MetricError, lpips_network, st_lpips_network

__all__ = ["better_of", "check_metric", "needs_truth", "prepare_metric"]

BETTER = ("higher", "lower")
_IMAGES = ("img", "img2")
_CHOICES = {"input_order": ("HWC", "CHW", "HW"), "convert_to": ("y", "gray")}


@dataclass(frozen=True)
class Facts:
    """Facts about a metric.

    Attributes:
        better: which figures are better.
        least: smallest side in pixels that must be left by the border.
        why: what needs them.
        blocks: for NIQE, which fits a distribution to blocks of ``least`` pixels: the fewest of them.
    """

    better: str = "higher"
    least: int = 1
    why: str = "a patch"
    blocks: int = 1


_WINDOW = Facts(least=11, why="a window")
FACTS: dict[str, Facts] = {
    "calculate_psnr": Facts(),
    "calculate_psnr_pt": Facts(),
    "calculate_ssim": _WINDOW,
    "calculate_ssim_pt": _WINDOW,
    "calculate_niqe": Facts("lower", 96, "two blocks", blocks=2),
    "calculate_lpips": Facts("lower", 31, "an input"),
    "calculate_st_lpips": Facts("lower", 21, "an input"),
}


def _arguments(metric: Callable) -> dict[str, inspect.Parameter]:
    named = inspect.signature(metric).parameters.values()
    return {p.name: p for p in named if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in _IMAGES}


def needs_truth(kind: str) -> bool:
    """Whether a metric compares with a ground truth.

    Args:
        kind: ``type`` of the metric.
    """
    return "img2" in inspect.signature(METRIC_REGISTRY.get(kind)).parameters


def better_of(options: Mapping) -> str:
    """Which figures of a metric are better: ``higher`` or ``lower``.

    Args:
        options: entry of ``val: metrics``.
    """
    return FACTS[options["type"]].better if options["type"] in FACTS else options.get("better", "higher")


def _check_options(kind: str, metric: Callable, options: Mapping) -> None:
    """Refuse arguments that a metric does not have, lacks, or cannot use."""
    arguments = _arguments(metric)
    for name, value in options.items():
        parameter = arguments.get(name)
        if name == "better" and parameter is None:
            known = FACTS.get(kind, Facts(better=value)).better
            if value not in BETTER:
                raise MetricError(f"{kind}: better must be {' or '.join(BETTER)}, got {value!r}")
            if value != known:
                raise MetricError(f"{kind}: {known} is better, but better: {value} is set; leave it out")
        elif parameter is None:
            raise MetricError(unknown(kind, "argument", name, [*arguments, "better"]))
        elif isinstance(parameter.default, bool) and not isinstance(value, bool):
            raise MetricError(f"{kind}: {name} must be true or false (unquoted), got {value!r}")
        elif name == "crop_border" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise MetricError(f"{kind}: crop_border must be a whole number of pixels, at least 0, got {value!r}")
        elif name in _CHOICES and value not in _CHOICES[name]:
            raise MetricError(f"{kind}: {name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")
    missing = [n for n, p in arguments.items() if p.default is p.empty and n not in options]
    if missing:
        raise MetricError(f"{kind}: {' and '.join(missing)} is missing")


def check_metric(name: str, options: object) -> None:
    """Refuse an entry of ``val: metrics`` that could not be computed, or that would compute something else.

    Args:
        name: its key.
        options: its content, ``{type: calculate_psnr, crop_border: 2, ...}``.

    Raises:
        MetricError: no mapping, an unknown ``type`` or argument, a value of the wrong kind, or a missing one.
    """
    if not isinstance(options, Mapping) or "type" not in options:
        raise MetricError(
            f"val: metrics: {name}: expected {{type: calculate_psnr, crop_border: 2, ...}}, got {options!r}"
        )
    kind = options["type"]
    if not isinstance(kind, str) or kind not in METRIC_REGISTRY:
        raise MetricError(unknown(f"val: metrics: {name}", "metric", kind, METRIC_REGISTRY.keys()))
    try:
        _check_options(kind, METRIC_REGISTRY.get(kind), {k: v for k, v in options.items() if k != "type"})
    except MetricError as err:
        raise MetricError(f"val: metrics: {name}: {err}") from None


def prepare_metric(options: Mapping) -> None:
    """Load what a metric needs besides images, so that it is not found missing at the end of a training.

    Args:
        options: entry of ``val: metrics``, as :func:`check_metric` accepts it.

    Raises:
        MetricError: a package or a file of weights is missing.
    """
    networks = {"calculate_lpips": lpips_network, "calculate_st_lpips": st_lpips_network}
    if options["type"] in networks:
        networks[options["type"]](options.get("net", "alex"), options.get("device", "cpu"))


def _sides(image, order: str) -> tuple[int, int]:
    """Height and width of a NumPy image, or of a tensor (n, c, h, w)."""
    if not isinstance(image, np.ndarray):
        return tuple(image.shape[-2:])
    return tuple(image.shape[1:3] if order == "CHW" and image.ndim == 3 else image.shape[:2])


def _check_images(kind: str, images: Mapping, options: Mapping) -> None:
    """Refuse images that differ in size, or of which the border leaves too little."""
    order, border, facts = options.get("input_order", "HWC"), options.get("crop_border", 0), FACTS.get(kind, Facts())
    sizes = [_sides(image, order) for image in images.values()]
    if len({image.shape for image in images.values()}) > 1:
        shapes = " and ".join("x".join(map(str, image.shape)) for image in images.values())
        raise MetricError(f"{kind}: images of different shapes cannot be compared: {shapes}; do scale and network fit?")
    height, width = sizes[0]
    left = [max(n - 2 * border, 0) for n in (height, width)]
    if min(left) < facts.least or math.prod(n // facts.least for n in left) < facts.blocks:
        raise MetricError(
            f"{kind}: crop_border {border} leaves {left[0]} x {left[1]} of {height} x {width} pixels, too few for {facts.why} "
            f"of {facts.least} x {facts.least}"
        )


def _checked(kind: str, metric: Callable) -> Callable:
    """A metric that refuses what it would otherwise pass over."""
    signature = inspect.signature(metric)
    takes = [name for name in _IMAGES if name in signature.parameters]

    @functools.wraps(metric)
    def checked(img, img2=None, **options):
        _check_options(kind, metric, options)
        images = {name: image for name, image in (("img", img), ("img2", img2)) if name in takes}
        if any(image is None for image in images.values()):
            raise MetricError(f"{kind}: compares with a ground truth, and there is none")
        _check_images(kind, images, options)
        try:
            value = metric(**images, **{name: value for name, value in options.items() if name != "better"})
        except np.linalg.LinAlgError as err:
            raise MetricError(f"{kind}: cannot be computed for this image ({err}); is it flat?") from err
        unequal = value != value  # nan, of a number or a tensor
        if bool(unequal.any() if hasattr(unequal, "any") else unequal):
            raise MetricError(f"{kind}: is nan for this image; is it flat?")
        return value

    named = [p for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    checked.__signature__ = signature.replace(parameters=named)
    return checked


def install() -> None:
    """Put the checking functions into BasicSR's registry. Once is enough."""
    for kind, metric in list(METRIC_REGISTRY):
        if not hasattr(metric, "__wrapped__"):
            METRIC_REGISTRY._obj_map[kind] = _checked(kind, metric)


install()
