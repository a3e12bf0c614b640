"""prepare_data --modcrop: pairs of exact scale, as BasicSR's training crop demands."""

from __future__ import annotations

import numpy as np

from qmambair_basicsr.data.image_files import read_image, write_image
from qmambair_basicsr.tools import prepare_data


def test_hr_is_cropped_to_the_multiple_and_lr_is_its_exact_half(tmp_path):
    img = np.random.default_rng(0).integers(0, 256, (27, 41, 3), dtype=np.uint8)
    write_image(tmp_path / "in" / "a.png", img)
    args = ["sr", "--set", "S", "--input", str(tmp_path / "in"), "--root", str(tmp_path), "--scales", "2"]
    assert prepare_data.main([*args, "--modcrop", "12", "--workers", "1"]) == 0
    hr = read_image(tmp_path / "S" / "HR" / "a.png")
    assert np.array_equal(hr, img[:24, :36])
    assert read_image(tmp_path / "S" / "LR_bicubic" / "X2" / "ax2.png").shape == (12, 18, 3)
