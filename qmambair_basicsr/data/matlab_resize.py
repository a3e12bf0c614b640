"""Bicubic resize that reproduces MATLAB's ``imresize`` on 8-bit images, bit for bit.

Super-resolution benchmarks define their low-resolution inputs as ``imresize(hr, 1/scale)`` of an 8-bit image in
MATLAB. Three facts decide the last bit:

* the kernel is Keys' cubic (a = -0.5), widened by ``1/scale`` when shrinking (antialiasing), and its taps are
  normalised per output sample;
* image borders are mirrored with the edge sample repeated (``... 2 1 | 1 2 ...``);
* the image is resized along its height first, the result is rounded (half away from zero) and clipped to 8 bits,
  and only then along its width, rounded and clipped again.

BasicSR's own ``imresize`` works in floating point from end to end and so differs in 10-15 % of the samples.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["bicubic_downscale", "imresize", "modcrop", "taps"]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5 (Keys 1981, eq. 15), support [-2, 2]."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))


def taps(length: int, out_length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and weights of every output sample along one axis.

    Args:
        length: samples before.
        out_length: samples after.
        scale: output samples per input sample; below 1 the kernel is stretched by ``1/scale``.

    Returns:
        ``(index, weight)``, both (taps, out_length): ``out[i] = sum_t weight[t, i] * in[index[t, i]]``.
    """
    stretch = min(scale, 1.0)
    width = 4.0 / stretch
    centre = (np.arange(out_length) + 0.5) / scale - 0.5  # position of output sample i on the input axis
    first = np.floor(centre - width / 2.0).astype(np.int64)
    count = math.ceil(width) + 2
    position = first + np.arange(count)[:, None]  # (taps, out_length)
    weight = _cubic((centre - position) * stretch)
    weight /= weight.sum(axis=0)
    index = position % (2 * length)  # the mirrored signal has period 2*length
    index = np.where(index < length, index, 2 * length - 1 - index)
    used = weight.any(axis=1)
    return index[used], weight[used]


def _resize_rows(img: np.ndarray, out_length: int, scale: float) -> np.ndarray:
    """Resize (H, W, C) float64 along its first axis."""
    index, weight = taps(img.shape[0], out_length, scale)
    out = np.zeros((out_length, *img.shape[1:]))
    for i, w in zip(index, weight, strict=True):  # tap by tap: memory stays at one output image
        out += w[:, None, None] * img[i]
    return out


def _to_uint8_range(x: np.ndarray) -> np.ndarray:
    """Round half away from zero and clip to [0, 255] (negative values clip to 0 whichever way they round)."""
    return np.clip(np.floor(x + 0.5), 0.0, 255.0)


def imresize(img: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image as MATLAB's ``imresize(img, scale)`` (bicubic, antialiased) does.

    Args:
        img: (H, W) or (H, W, C). ``uint8`` is rounded and clipped after each pass, as MATLAB does for that class;
            floating-point images are neither rounded nor clipped.
        scale: output size over input size, above 0. The output measures ``ceil(H*scale) x ceil(W*scale)``.

    Returns:
        The resized image, of the same dtype and number of dimensions.

    Raises:
        ValueError: wrong number of dimensions, an empty image or a scale that is not positive.
        TypeError: dtype is neither ``uint8`` nor floating point.
    """
    if img.ndim not in (2, 3) or img.size == 0:
        raise ValueError(f"imresize needs a non-empty (H, W) or (H, W, C) image, got shape {img.shape}")
    if not scale > 0:
        raise ValueError(f"imresize needs a positive scale, got {scale}")
    if img.dtype != np.uint8 and not np.issubdtype(img.dtype, np.floating):
        raise TypeError(f"imresize takes uint8 or floating-point images, got {img.dtype}")
    finish = _to_uint8_range if img.dtype == np.uint8 else np.asarray
    # a scale such as 1/3 times a multiple of 3 may land a hair above the integer: that is not one pixel more
    height, width = (math.ceil(round(n * scale, 9)) for n in img.shape[:2])
    out = img.astype(np.float64).reshape(img.shape[0], img.shape[1], -1)
    out = finish(_resize_rows(out, height, scale))
    out = finish(_resize_rows(out.swapaxes(0, 1), width, scale)).swapaxes(0, 1)
    return np.ascontiguousarray(out.reshape(height, width, *img.shape[2:]).astype(img.dtype))


def modcrop(img: np.ndarray, scale: int) -> np.ndarray:
    """Cut the bottom and right so that height and width are multiples of ``scale`` (the benchmarks' convention).

    Args:
        img: (H, W) or (H, W, C).
        scale: integer >= 1.

    Returns:
        A view of the top-left part.

    Raises:
        ValueError: the image is smaller than ``scale`` in one direction, so nothing would be left.
    """
    height, width = (n - n % scale for n in img.shape[:2])
    if height == 0 or width == 0:
        raise ValueError(f"an image of {img.shape[0]} x {img.shape[1]} is too small for scale {scale}")
    return img[:height, :width]


def bicubic_downscale(img: np.ndarray, scale: int) -> np.ndarray:
    """The benchmark's LR image: modcrop, then MATLAB bicubic by ``1/scale``.

    Args:
        img: (H, W) or (H, W, C), ``uint8`` (rounded between the passes) or floating point.
        scale: integer >= 2.

    Returns:
        (H//scale, W//scale[, C]) of the same dtype.

    Raises:
        ValueError: ``scale`` is not an integer of at least 2, or the image is smaller than it.
    """
    if int(scale) != scale or scale < 2:
        raise ValueError(f"scale must be an integer of at least 2, got {scale}")
    return imresize(modcrop(img, int(scale)), 1.0 / scale)
