"""JPEG compression of an image in integer arithmetic: the same bytes on every machine.

Which pixels come back from ``encode``/``decode`` depends on the library and its build (IJG 6b, libjpeg-turbo,
mozjpeg; DCT method; chroma filter). This module computes the result of the defaults that MATLAB, OpenCV and Pillow
share: a baseline encoder and decoder with the 13-bit integer DCT ("islow") and the smooth chroma interpolation of
the Independent JPEG Group's release 6b. Entropy coding loses nothing, so no bit stream is made.

Settings, stated once: Annex K quantization tables scaled by the IJG quality factor and limited to 1..255; JFIF YCbCr
(BT.601, full range); chroma subsampling 4:2:0 (2 x 2 mean) or 4:4:4; missing block samples repeat the edge.

Source: ITU-T T.81 (tables K.1, K.2), JFIF 1.02, Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT
algorithms with 11 multiplications", ICASSP 1989.
"""

from __future__ import annotations

import numpy as np

__all__ = ["SUBSAMPLING", "jpeg_roundtrip", "quantization_table"]

SUBSAMPLING = ("4:2:0", "4:4:4")

_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMA = np.full((8, 8), 99)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_CONST_BITS = 13  # fraction bits of the DCT constants
_PASS1_BITS = 2  # extra fraction bits kept between the two 1-D passes


def _dct_matrix() -> np.ndarray:
    """The 1-D DCT of Loeffler et al. with constants rounded to 13 bits, as one (8, 8) integer matrix.

    The flow graph adds and multiplies integers exactly and rounds at its outputs only, hence it *is* a matrix. Its
    entries are 2^13 * sqrt(2) * cos(..), some off by one because sums of rounded constants are not rounded sums.
    """

    def fix(value: float) -> int:
        return int(value * (1 << _CONST_BITS) + 0.5)

    sample = np.eye(8, dtype=np.int64)
    plus, minus = sample[:4] + sample[:3:-1], sample[:4] - sample[:3:-1]  # x_i +- x_{7-i}
    out = np.empty((8, 8), dtype=np.int64)
    inner, outer = plus[1] - plus[2], plus[0] - plus[3]
    out[0] = plus.sum(axis=0) << _CONST_BITS
    out[4] = (plus[0] + plus[3] - plus[1] - plus[2]) << _CONST_BITS
    rotation = (inner + outer) * fix(0.541196100)
    out[2] = rotation + outer * fix(0.765366865)
    out[6] = rotation - inner * fix(1.847759065)
    d0, d1, d2, d3 = minus
    common = (d0 + d1 + d2 + d3) * fix(1.175875602)
    even = common - (d1 + d3) * fix(1.961570560)
    odd = common - (d0 + d2) * fix(0.390180644)
    ends = -(d0 + d3) * fix(0.899976223)
    middle = -(d1 + d2) * fix(2.562915447)
    out[1] = d0 * fix(1.501321110) + ends + odd
    out[3] = d1 * fix(3.072711026) + middle + even
    out[5] = d2 * fix(2.053119869) + middle + odd
    out[7] = d3 * fix(0.298631336) + ends + even
    return out


_DCT = _dct_matrix().astype(np.float64)  # float64 holds every intermediate integer (< 2^31) exactly and uses BLAS


def _descale(x: np.ndarray, bits: int) -> np.ndarray:
    """Divide by 2^bits, rounding halves up."""
    return np.floor(x * 2.0**-bits + 0.5)


def _fdct(blocks: np.ndarray) -> np.ndarray:
    """Forward DCT of (..., 8, 8) level-shifted samples; coefficients come out times 8."""
    rows = _descale(blocks @ _DCT.T, _CONST_BITS - _PASS1_BITS)
    return _descale(_DCT @ rows, _CONST_BITS + _PASS1_BITS)


def _idct(coefficients: np.ndarray) -> np.ndarray:
    """Inverse DCT of (..., 8, 8) dequantized coefficients to samples 0..255 (the transposed flow graph)."""
    columns = _descale(_DCT.T @ coefficients, _CONST_BITS - _PASS1_BITS)
    return np.clip(_descale(columns @ _DCT, _CONST_BITS + _PASS1_BITS + 3) + 128, 0, 255)


def quantization_table(quality: int, *, chroma: bool = False) -> np.ndarray:
    """Annex K table scaled by the IJG rule: 5000/q percent below 50, (200 - 2q) percent from 50.

    Args:
        quality: 1 (worst) to 100.
        chroma: the table for Cb and Cr instead of Y and grey.

    Returns:
        (8, 8) int64, 1..255.

    Raises:
        ValueError: quality outside 1..100 or not an integer.
    """
    if int(quality) != quality or not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality must be an integer from 1 to 100, got {quality}")
    quality = int(quality)
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip(((_CHROMA if chroma else _LUMA) * percent + 50) // 100, 1, 255)


def _compress_plane(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Quantize one component (H, W), values 0..255, in blocks of 8 x 8 and reconstruct it."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge").astype(np.float64) - 128
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    blocks = padded.reshape(rows, 8, columns, 8).swapaxes(1, 2)  # (rows, columns, 8, 8)
    coefficients = _fdct(blocks)
    level = np.sign(coefficients) * ((np.abs(coefficients) + 4 * table) // (8 * table))  # half away from zero
    return _idct(level * table).swapaxes(1, 2).reshape(padded.shape)[:height, :width].astype(np.int64)


def _halve(plane: np.ndarray) -> np.ndarray:
    """2 x 2 mean; the rounding bias alternates 1, 2 along a row so that it cancels on average."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
    total = plane[0::2, 0::2] + plane[1::2, 0::2] + plane[0::2, 1::2] + plane[1::2, 1::2]
    return (total + 1 + np.arange(total.shape[1]) % 2) >> 2


def _double(plane: np.ndarray) -> np.ndarray:
    """Triangle interpolation to twice the size: weights 3/4 and 1/4 towards the nearer sample, both ways."""
    if plane.shape[1] <= 2:
        return plane.repeat(2, axis=0).repeat(2, axis=1)
    height, width = plane.shape
    edge = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
    rows = np.empty((2 * height, width), dtype=np.int64)
    rows[0::2] = 3 * plane + edge[:-2]
    rows[1::2] = 3 * plane + edge[2:]
    edge = np.pad(rows, ((0, 0), (1, 1)), mode="edge")
    out = np.empty((2 * height, 2 * width), dtype=np.int64)
    out[:, 0::2] = (3 * rows + edge[:, :-2] + 8) >> 4
    out[:, 1::2] = (3 * rows + edge[:, 2:] + 7) >> 4
    return out


def _to_ycc(img: np.ndarray) -> list[np.ndarray]:
    """BGR (H, W, 3) to Y, Cb, Cr planes in 16-bit fixed point (JFIF)."""
    b, g, r = (img[..., i].astype(np.int64) for i in range(3))
    half, centre = 1 << 15, 128 << 16
    return [
        (19595 * r + 38470 * g + 7471 * b + half) >> 16,
        (-11059 * r - 21709 * g + 32768 * b + centre + half - 1) >> 16,
        (32768 * r - 27439 * g - 5329 * b + centre + half - 1) >> 16,
    ]


def _to_bgr(y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> np.ndarray:
    cb, cr, half = cb - 128, cr - 128, 1 << 15
    r = y + ((91881 * cr + half) >> 16)
    g = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    b = y + ((116130 * cb + half) >> 16)
    return np.clip(np.stack([b, g, r], axis=2), 0, 255).astype(np.uint8)


def jpeg_roundtrip(img: np.ndarray, quality: int, subsampling: str = "4:2:0") -> np.ndarray:
    """Compress and decompress an image.

    Args:
        img: uint8 (H, W), (H, W, 1) grey or (H, W, 3) BGR.
        quality: 1..100, IJG scale (as in MATLAB, OpenCV and Pillow).
        subsampling: chroma resolution of a colour image, ``4:2:0`` or ``4:4:4``; a grey image has none.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: quality, subsampling or shape out of range.
        TypeError: not uint8.
    """
    if img.dtype != np.uint8:
        raise TypeError(f"JPEG compresses uint8 images, got {img.dtype}")
    if img.ndim not in (2, 3) or img.size == 0 or (img.ndim == 3 and img.shape[2] not in (1, 3)):
        raise ValueError(f"JPEG compresses (H, W), (H, W, 1) or (H, W, 3) images, got shape {img.shape}")
    if subsampling not in SUBSAMPLING:
        raise ValueError(f"unknown chroma subsampling {subsampling!r}; known: {', '.join(SUBSAMPLING)}")
    luma_table = quantization_table(quality)
    if img.ndim == 2 or img.shape[2] == 1:
        return _compress_plane(img.reshape(img.shape[:2]), luma_table).astype(np.uint8).reshape(img.shape)
    chroma_table = quantization_table(quality, chroma=True)
    y, *chroma = _to_ycc(img)
    y = _compress_plane(y, luma_table)
    if subsampling == "4:4:4":
        return _to_bgr(y, *(_compress_plane(c, chroma_table) for c in chroma))
    height, width = img.shape[:2]
    samples = (width + 1) // 2  # the decoder interpolates between real samples only
    chroma = [_double(_compress_plane(_halve(c), chroma_table)[:, :samples]) for c in chroma]
    return _to_bgr(y, *(c[:height, :width] for c in chroma))
