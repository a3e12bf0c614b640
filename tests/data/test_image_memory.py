"""image_memory: the same samples, every file decoded once, never more than the limit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from qmambair_basicsr.data import base
from qmambair_basicsr.data.image_memory import images_in_memory
from qmambair_basicsr.data.pairs_dataset import RestorationPairDataset


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    for folder, side in (("HR", 32), ("LR", 16)):
        (tmp_path / folder).mkdir()
        for name in "ab":
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    opt = {"phase": "train", "scale": 2, "gt_size": 24, "io_backend": {"type": "disk"}, "use_rot": True}
    return RestorationPairDataset(
        opt | {"use_hflip": True, "dataroot_gt": str(tmp_path / "HR"), "dataroot_lq": str(tmp_path / "LR")}
    )


def samples(dataset):
    torch.manual_seed(0)
    return [dataset[i % 2] for i in range(6)]


@pytest.mark.parametrize(("limit", "decoded"), [(10**6, 4), (0, 12), (32 * 32 * 3, 1 + 2 * 3 + 3)])
def test_same_samples(dataset, monkeypatch, limit, decoded):
    """Kept images give what files give; with room for one ground truth, only that is kept."""
    expected = samples(dataset)
    names = []

    def count(content, name):
        names.append(name)
        return decode(content, name)

    decode = base.decode_image
    monkeypatch.setattr(base, "decode_image", count)
    with images_in_memory(limit) as memory:
        for sample, other in zip(samples(dataset), expected, strict=True):
            assert torch.equal(sample["gt"], other["gt"]) and torch.equal(sample["lq"], other["lq"])
        assert memory.used <= limit
    assert len(names) == decoded
    assert base.RestorationDataset.memory is None


def test_kept_images_cannot_be_changed(dataset):
    with images_in_memory(10**6) as memory:
        dataset[0]
        image = memory.get(dataset.items[0].gt, lambda: pytest.fail("it is kept"))
        with pytest.raises(ValueError, match="read-only"):
            image[0, 0] = 0
