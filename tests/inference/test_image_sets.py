"""Images as tensors; middles of images stay on their ground truth."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from qmambair_basicsr.inference.image_sets import load_samples, middles, to_image, to_tensor


def test_middle_of_an_image_and_of_its_truth(tmp_path):
    low = np.random.default_rng(0).integers(0, 256, (11, 14, 3), np.uint8)
    for name, image in (("inputs/ax2.png", low), ("truth/a.png", low.repeat(2, 0).repeat(2, 1))):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), image)
    (sample,) = load_samples(tmp_path / "inputs", tmp_path / "truth", 3, 2, side=8)
    wanted = low[1:9, 3:11]
    assert np.array_equal(sample.truth, wanted.repeat(2, 0).repeat(2, 1))
    assert torch.equal((sample.image * 255).round().byte()[0].permute(1, 2, 0).flip(-1), torch.from_numpy(wanted))
    (whole,) = middles(tmp_path / "inputs", 3, 8, 100, 5)
    assert whole.shape == (1, 3, 8, 14) and torch.equal(whole[..., 3:11], sample.image)


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_are_rgb_in_0_1(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, channels), np.uint8)
    tensor = to_tensor(image)
    assert tensor.shape == (1, channels, 5, 6)
    assert np.array_equal((tensor[0, 0] * 255).numpy(), image[..., -1])
    assert np.array_equal(to_image(tensor), image)
