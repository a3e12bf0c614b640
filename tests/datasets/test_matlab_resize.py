"""The bicubic resize against files made by MATLAB."""

from __future__ import annotations

import numpy as np
import pytest

from qmambair_basicsr.data.image_files import read_image
from qmambair_basicsr.data.matlab_resize import bicubic_downscale, imresize, modcrop

SCALES = (2, 3, 4)


@pytest.mark.parametrize("scale", SCALES)
def test_set5_bit_for_bit(shared_dir, scale):
    """All Set5 LR files that super-resolution papers use."""
    set5 = shared_dir / "data" / "test" / "Set5"
    files = sorted((set5 / "HR").glob("*.png"))
    assert len(files) == 5
    for file in files:
        matlab = read_image(set5 / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png")
        np.testing.assert_array_equal(bicubic_downscale(read_image(file), scale), matlab, err_msg=file.name)


@pytest.mark.parametrize("scale", SCALES)
def test_top_left_of_butterfly_bit_for_bit(data_dir, scale):
    """A corner of one MATLAB file: interior and two borders, for users without the benchmark images."""
    with np.load(data_dir / "matlab_bicubic_butterfly.npz") as stored:
        hr, matlab = stored["hr"], stored[f"x{scale}"]
    rows, columns = matlab.shape[:2]
    np.testing.assert_array_equal(bicubic_downscale(hr, scale)[:rows, :columns], matlab)


@pytest.mark.parametrize("scale", SCALES)
def test_basicsr_differs_in_a_tenth_of_the_samples(shared_dir, scale):
    """The README's figure: BasicSR's imresize is not MATLAB's on 8-bit images."""
    from basicsr.utils.matlab_functions import imresize as basicsr_imresize

    set5 = shared_dir / "data" / "test" / "Set5"
    different = total = 0
    for file in sorted((set5 / "HR").glob("*.png")):
        matlab = read_image(set5 / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png")
        other = basicsr_imresize(modcrop(read_image(file), scale).astype(np.float32) / 255, 1 / scale)
        different += np.count_nonzero(np.clip((other * 255).round(), 0, 255) != matlab)
        total += matlab.size
    assert 0.095 < different / total < 0.15


@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.25, 0.37, 1.7, 2.0])
@pytest.mark.parametrize("shape", [(1, 1), (24, 12), (31, 7, 3)])
def test_mirror_symmetry_and_constants(scale, shape):
    """Every border behaves as the top left one does, and a constant image stays constant."""
    img = np.random.default_rng(1).random(shape)
    out = imresize(img, scale)
    if all(float(n * scale).is_integer() for n in shape[:2]):  # else the sampling grid is not centred on the image
        np.testing.assert_allclose(imresize(img[::-1, ::-1], scale), out[::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(imresize(np.full(shape, 0.3), scale), np.full(out.shape, 0.3), atol=1e-12)


def test_rounding_between_the_passes_matters():
    """The 8-bit result is not the rounded floating-point result: the height pass is rounded first."""
    img = np.random.default_rng(2).integers(0, 256, (48, 48), dtype=np.uint8)
    once = np.clip(np.floor(imresize(img.astype(np.float64), 0.5) + 0.5), 0, 255)
    assert np.count_nonzero(imresize(img, 0.5) != once) > 0


def test_scale_sizes():
    """2040 * (1/3) must give 680 columns, not 681, and other sizes round up as MATLAB's do."""
    assert imresize(np.zeros((2040, 1356), np.uint8), 1 / 3).shape == (680, 452)
    assert imresize(np.zeros((5, 9), np.float32), 0.5).shape == (3, 5)
    assert bicubic_downscale(np.zeros((13, 11, 3), np.uint8), 4).shape == (3, 2, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: imresize(np.zeros((0, 3), np.uint8), 0.5), ValueError, "non-empty"),
        (lambda: imresize(np.zeros(3, np.uint8), 0.5), ValueError, r"shape \(3,\)"),
        (lambda: imresize(np.zeros((3, 3), np.uint8), 0), ValueError, "positive scale, got 0"),
        (lambda: imresize(np.zeros((3, 3), np.int32), 0.5), TypeError, "int32"),
        (lambda: modcrop(np.zeros((3, 9)), 4), ValueError, "3 x 9"),
        (lambda: bicubic_downscale(np.zeros((9, 9)), 1), ValueError, "got 1"),
    ],
)
def test_errors(call, error, words):
    """Errors say what was wrong."""
    with pytest.raises(error, match=words):
        call()
