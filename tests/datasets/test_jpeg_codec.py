"""The JPEG model against real encoders and against published figures."""

from __future__ import annotations

import hashlib
import io

import cv2
import numpy as np
import pytest
from basicsr.metrics import calculate_psnr
from PIL import Image
from skimage import data as photos

from qmambair_basicsr.data.image_files import match_channels, read_image
from qmambair_basicsr.data.jpeg_codec import SUBSAMPLING, jpeg_roundtrip, quantization_table

# sides that are and are not multiples of 8 and 16, and narrower than the chroma filter
SIZES = [(1, 1), (3, 5), (5, 3), (4, 4), (16, 16), (17, 33), (40, 7), (31, 15), (25, 2), (33, 5), (64, 49)]
CV2_SAMPLING = {"4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}


def _pictures(height, width):
    rng = np.random.default_rng(height * 100 + width)
    yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    yield (rng.random((height, width, 3)) > 0.5).astype(np.uint8) * 255
    yield np.ascontiguousarray(photos.astronaut()[100 : 100 + height, 200 : 200 + width, ::-1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quality", [1, 10, 40, 75, 100])
def test_equal_to_libjpeg(size, quality):
    """Every pixel equals what OpenCV's and Pillow's libjpeg-turbo give, colour and grey, at awkward sizes."""
    for img in _pictures(*size):
        for subsampling in SUBSAMPLING:
            ours = jpeg_roundtrip(img, quality, subsampling)
            flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, CV2_SAMPLING[subsampling]]
            opencv = cv2.imdecode(cv2.imencode(".jpg", img, flags)[1], cv2.IMREAD_COLOR)
            np.testing.assert_array_equal(ours, opencv)
            file = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(img[..., ::-1])).save(
                file, "JPEG", quality=quality, subsampling=2 if subsampling == "4:2:0" else 0
            )
            np.testing.assert_array_equal(ours, np.asarray(Image.open(file))[..., ::-1])
        grey = np.ascontiguousarray(img[..., 1])
        encoded = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        opencv = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(jpeg_roundtrip(grey, quality), opencv)
        np.testing.assert_array_equal(jpeg_roundtrip(grey[..., None], quality)[..., 0], opencv)


def test_same_bytes_everywhere():
    """The digest of one result, whatever machine and library versions run this."""
    y, x = np.mgrid[:45, :70]
    img = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (255 - x * 2 + y) % 256], axis=2).astype(np.uint8)
    digest = hashlib.sha256(jpeg_roundtrip(img, 30).tobytes()).hexdigest()
    assert digest == "7510496fef3f609823e2f6603962b7cb68ae5b1be4af9f171481698554610ff6"


@pytest.mark.parametrize(
    ("name", "psnr"),
    [
        ("classic5", {10: 27.82, 20: 30.12, 30: 31.48, 40: 32.43}),
        ("LIVE1", {10: 27.77, 20: 30.07, 30: 31.41, 40: 32.35}),
    ],
)
def test_input_psnr_is_the_published_one(shared_dir, name, psnr):
    """Our grey test inputs are those of the literature (ARCNN, DnCNN and later print these JPEG columns)."""
    images = [match_channels(read_image(f), 1) for f in sorted((shared_dir / "data" / "test" / name / "HR").iterdir())]
    for quality, published in psnr.items():
        mean = np.mean([calculate_psnr(jpeg_roundtrip(img, quality), img, 0) for img in images])
        assert abs(mean - published) < 0.006, (name, quality, mean)


def test_quantization_table_scaling():
    """Quality 50 is Annex K itself, 100 is all ones, 1 reaches the limit of 255."""
    assert quantization_table(50)[0, 0] == 16
    assert quantization_table(50, chroma=True)[7, 7] == 99
    assert (quantization_table(100) == 1).all()
    assert quantization_table(1).max() == 255


@pytest.mark.parametrize(
    ("img", "quality", "subsampling", "error", "words"),
    [
        (np.zeros((8, 8), np.float32), 30, "4:2:0", TypeError, "float32"),
        (np.zeros((8, 8, 2), np.uint8), 30, "4:2:0", ValueError, r"\(8, 8, 2\)"),
        (np.zeros((0, 8), np.uint8), 30, "4:2:0", ValueError, r"\(0, 8\)"),
        (np.zeros((8, 8), np.uint8), 0, "4:2:0", ValueError, "got 0"),
        (np.zeros((8, 8), np.uint8), 101, "4:2:0", ValueError, "got 101"),
        (np.zeros((8, 8), np.uint8), 30, "4:1:1", ValueError, "4:1:1"),
    ],
)
def test_errors(img, quality, subsampling, error, words):
    """Errors say what was wrong."""
    with pytest.raises(error, match=words):
        jpeg_roundtrip(img, quality, subsampling)
