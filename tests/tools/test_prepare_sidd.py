"""prepare_data sidd: photographed pairs into patches, .mat blocks into images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import savemat

from qmambair_basicsr.data.image_files import read_image, write_image
from qmambair_basicsr.tools.prepare_data import main

BLOCKS = np.random.default_rng(0).integers(0, 256, (40, 32, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def medium(tmp_path):
    """Two scenes in the folder structure of SIDD_Medium_Srgb."""
    rng = np.random.default_rng(1)
    for scene in ("0001_001", "0002_001"):
        for kind in ("GT", "NOISY"):
            img = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
            write_image(tmp_path / "Data" / scene / f"{scene[:4]}_{kind}_SRGB_010.png", img)
    for file in (tmp_path / "Data").rglob("*.png"):
        file.rename(file.with_suffix(".PNG"))
    return tmp_path / "Data"


def _run(tmp_path, folder, *more):
    root = tmp_path / "datasets"
    argv = ["sidd", "--set", "SIDD", "--root", root, "--input", folder, "--workers", 1, *more]
    return main([str(a) for a in argv]), root / "SIDD"


def test_training_patches(tmp_path, medium):
    """The same places of both images, under the same names."""
    code, base = _run(tmp_path, medium, "--size", 32, "--step", 24)
    assert code == 0
    names = {kind: sorted(f.name for f in (base / "train" / kind).iterdir()) for kind in ("GT", "LQ")}
    assert names["GT"] == names["LQ"]
    assert len(names["GT"]) == 2 * 2 * 2
    for kind, word in (("GT", "GT"), ("LQ", "NOISY")):
        whole = read_image(medium / "0001_001" / f"0001_{word}_SRGB_010.PNG")
        patch = read_image(base / "train" / kind / "0001_GT_SRGB_010_s004.png")
        np.testing.assert_array_equal(patch, whole[8:, 24:])


def test_validation_blocks(tmp_path):
    """Every block, RGB in the file and in the image, under one name for both kinds."""
    mats = tmp_path / "mats"
    mats.mkdir()
    for name, blocks in (("ValidationGtBlocksSrgb", BLOCKS), ("ValidationNoisyBlocksSrgb", 255 - BLOCKS)):
        savemat(mats / f"{name}.mat", {name: blocks})
    code, base = _run(tmp_path, mats)
    assert code == 0
    assert len(list((base / "val" / "GT").iterdir())) == len(list((base / "val" / "LQ").iterdir())) == 1280
    np.testing.assert_array_equal(read_image(base / "val" / "GT" / "03_07.png")[..., ::-1], BLOCKS[3, 7])
    np.testing.assert_array_equal(read_image(base / "val" / "LQ" / "39_31.png")[..., ::-1], 255 - BLOCKS[39, 31])


def test_errors(tmp_path, medium, caplog):
    """Missing partners, files and pairs are named."""
    assert _run(tmp_path, medium, "--size", 64)[0] == 1
    assert "less than a patch of 64" in caplog.text
    next(medium.rglob("0002_NOISY*")).unlink()
    assert _run(tmp_path, medium)[0] == 1
    assert "partner 0002_NOISY_SRGB_010.PNG is missing" in caplog.text
    (tmp_path / "empty").mkdir()
    assert _run(tmp_path, tmp_path / "empty")[0] == 1
    assert "no *GT_SRGB_*.PNG below it" in caplog.text
    savemat(tmp_path / "empty" / "ValidationGtBlocksSrgb.mat", {"other": BLOCKS})
    assert _run(tmp_path, tmp_path / "empty")[0] == 1
    assert "ValidationNoisyBlocksSrgb.mat: missing" in caplog.text
    (tmp_path / "empty" / "ValidationNoisyBlocksSrgb.mat").write_bytes(b"no matlab file")
    assert _run(tmp_path, tmp_path / "empty")[0] == 1
    assert "holds no uint8 array ValidationGtBlocksSrgb" in caplog.text
