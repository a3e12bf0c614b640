"""Noise of the denoising tasks: Gaussian as the published protocol draws it, and a model of camera noise."""

from __future__ import annotations

import numpy as np

from .jpeg_codec import jpeg_roundtrip

__all__ = ["add_gaussian_noise", "camera_noise", "eight_bits", "gaussian_test_noise"]


def gaussian_test_noise(shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """The noise of a test image: the same for every image of one size.

    The MambaIR release calls ``np.random.seed(0)`` before every test image and adds
    ``np.random.normal(0, sigma / 255, shape)`` to the float BGR (H, W, C) image in [0, 1]. NumPy guarantees that
    ``RandomState(0)`` repeats that stream.

    Args:
        shape: (H, W, C).
        sigma: standard deviation in grey levels of 0..255.

    Returns:
        float64 of this shape, in units of [0, 1].

    Raises:
        ValueError: negative sigma.
    """
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    return np.random.RandomState(0).normal(0, sigma / 255.0, shape)


def add_gaussian_noise(img: np.ndarray, sigma: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """A noisy copy, neither clipped nor rounded.

    Args:
        img: uint8 (H, W, C), BGR.
        sigma: standard deviation in grey levels of 0..255.
        rng: generator of a training sample; None = :func:`gaussian_test_noise`.

    Returns:
        float32 (H, W, C), around [0, 1].
    """
    clean = img.astype(np.float32) / 255.0
    if rng is None:
        return (clean + gaussian_test_noise(img.shape, sigma)).astype(np.float32)
    return clean + rng.standard_normal(img.shape, dtype=np.float32) * np.float32(sigma / 255.0)


def eight_bits(img: np.ndarray) -> np.ndarray:
    """An image as a picture file holds it: float around [0, 1] -> uint8, rounded, and clipped to 0..255."""
    return np.floor(np.clip(img, 0, 1) * 255 + 0.5).astype(np.uint8)


def _demosaic(mosaic: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of an RGGB mosaic, given as (H, W, 3) with zeros where a colour was not measured."""
    out = np.empty_like(mosaic)
    measured = np.zeros(mosaic.shape)
    measured[0::2, 0::2, 2] = measured[1::2, 1::2, 0] = 1  # BGR: R at even-even, B at odd-odd
    measured[0::2, 1::2, 1] = measured[1::2, 0::2, 1] = 1
    kernel = ((0.25, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, 0.5, 0.25))
    for c in range(3):
        value, weight = (np.pad(a[..., c], 1, mode="reflect") for a in (mosaic, measured))
        height, width = mosaic.shape[:2]
        total, norm = np.zeros((height, width)), np.zeros((height, width))
        for i, row in enumerate(kernel):
            for j, factor in enumerate(row):
                # green has four measured neighbours side by side: the corners would be other green samples' share
                factor = 0.0 if c == 1 and i != 1 and j != 1 else factor
                total += factor * value[i : i + height, j : j + width]
                norm += factor * weight[i : i + height, j : j + width]
        out[..., c] = total / norm
    return out


def camera_noise(
    img: np.ndarray, shot: float, read: float, rng: np.random.Generator, quality: int | None = None
) -> np.ndarray:
    """A copy with the noise of a camera: signal dependent, coloured by demosaicing, perhaps JPEG compressed.

    The image is taken back to linear light (gamma 2.2); noise of variance ``shot * x + read^2`` is added to the Bayer
    mosaic, demosaicing spreads it over neighbours and channels, and gamma makes it strongest in the shadows. Only the
    noise is demosaiced: the image keeps its sharpness. A simplification of the in-camera pipelines of Guo et al.,
    "Toward convolutional blind denoising of real photographs", CVPR 2019 (sec. 3.2).

    Args:
        img: uint8 (H, W, 3), BGR, at least 2 x 2.
        shot: variance of the photon noise per unit of linear signal (about 1e-4 to 1e-2).
        read: standard deviation of the sensor noise in linear light (about 1e-3 to 2e-2).
        rng: source of the noise.
        quality: JPEG quality of the camera (4:2:0); None stores without loss.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: not a colour image, or negative strengths.
    """
    if img.ndim != 3 or img.shape[2] != 3:
        raise ValueError(f"camera noise needs a colour image (H, W, 3), got shape {img.shape}")
    if shot < 0 or read < 0:
        raise ValueError(f"noise strengths must not be negative, got shot {shot} and read {read}")
    linear = (img / 255.0) ** 2.2
    noise = rng.standard_normal(img.shape) * np.sqrt(shot * linear + read**2)
    mosaic = np.zeros(img.shape)
    for row, column, c in ((0, 0, 2), (0, 1, 1), (1, 0, 1), (1, 1, 0)):
        mosaic[row::2, column::2, c] = noise[row::2, column::2, c]
    out = eight_bits(np.clip(linear + _demosaic(mosaic), 0, 1) ** (1 / 2.2))
    return out if quality is None else jpeg_roundtrip(out, quality)
