"""Images as tensors; middles of images stay on their ground truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from qmambair_basicsr.inference.image_sets import load_samples, middles, partners, to_image, to_tensor


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


def names_of(truths, files, scale=2, count=None):
    found = partners([Path("in", f) for f in files], [Path("hr", t) for t in truths], scale, count)
    return [file.name for file in found.values()]


def test_one_rule_of_names_for_a_set():
    """``photox2`` is the reduced ``photo``, or ``photox2`` itself, as the other inputs say."""
    assert names_of(["photo.png", "photox2.png"], ["photox2.png", "photox2x2.png"]) == ["photo.png", "photox2.png"]
    assert names_of(["photo.png", "photox2.png"], ["photo.png", "photox2.png"]) == ["photo.png", "photox2.png"]
    assert names_of(["a.png", "b.png"], ["a.png", "bx2.png"]) == ["a.png", "b.png"]
    assert names_of(["a.png"], ["ax2.png", "bx2.png"], count=1) == ["a.png"]
    assert names_of(["a.png", "a.bmp"], ["ax2.bmp", "ax2.png"]) == ["a.bmp", "a.png"]


@pytest.mark.parametrize(
    ("truths", "files", "words"),
    [
        (
            ["photo.png", "photox2.png"],
            ["photox2.png"],
            "photox2.png and photo.png of hr could both be the ground truth",
        ),
        (["a.png", "a.bmp"], ["ax2.tif"], "a.png and a.bmp of hr could both be"),
        (["a.png"], ["ax2.png", "ax2.bmp"], "hr/a.png is the only ground truth of ax2.png and ax2.bmp"),
        (["a.png"], ["a.png", "ax2.png"], "hr/a.png is the only ground truth of a.png and ax2.png"),
        (["abc.png"], ["abd.png"], r"abd.png has no ground truth of the same name in hr \(did you mean 'abc'"),
    ],
)
def test_unclear_ground_truth_is_refused(truths, files, words):
    with pytest.raises(ValueError, match=words):
        names_of(truths, files)


def test_images_of_one_stem_keep_their_own_names(tmp_path):
    """Results are written under these names."""
    for name in ("a.png", "a.bmp", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    assert [s.name for s in load_samples(tmp_path, None, 3, 1)] == ["a.bmp", "a.png", "b"]
