"""Small image sets that the data tests share."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data as photos

from qmambair_basicsr.data.image_files import write_image
from qmambair_basicsr.data.matlab_resize import bicubic_downscale


@pytest.fixture
def image_set(tmp_path):
    """``make(count, side)`` writes photographs and their bicubic X2 images; returns (HR folder, LR folder)."""

    def make(count=4, side=48, name="set"):
        hr, lr = tmp_path / name / "HR", tmp_path / name / "LR_bicubic" / "X2"
        source = np.ascontiguousarray(photos.astronaut()[..., ::-1])
        for i in range(count):
            top, left = (i * 37) % (512 - side), (i * 59) % (512 - side)
            img = np.ascontiguousarray(source[top : top + side, left : left + side])
            write_image(hr / f"img{i:03d}.png", img)
            write_image(lr / f"img{i:03d}x2.png", bicubic_downscale(img, 2))
        return hr, lr

    return make
