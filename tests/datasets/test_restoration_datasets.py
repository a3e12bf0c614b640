"""The registered datasets: protocols, repeatability, agreement with BasicSR's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils.registry import DATASET_REGISTRY

from qmambair_basicsr.data.image_files import read_image, to_grey
from qmambair_basicsr.data.jpeg_codec import jpeg_roundtrip
from qmambair_basicsr.data.noise import camera_noise
from qmambair_basicsr.tools.prepare_data import main as prepare_data

DEGRADATIONS = {
    "GaussianNoiseDataset": {"sigma": 25},
    "JPEGDataset": {"quality": 30},
    "CameraNoiseDataset": {"quality": [90, 95]},
}


def _options(kind, hr, phase="val", **more):
    opt = {"name": "t", "type": kind, "phase": phase, "dataroot_gt": str(hr), "io_backend": {"type": "disk"}}
    if phase == "train":
        opt |= {"gt_size": 24, "use_hflip": True, "use_rot": True}
    return opt | DEGRADATIONS.get(kind, {}) | more


def _pairs(hr, lr, phase="val", **more):
    more = {"dataroot_lq": str(lr), "filename_tmpl": "{}x2", "scale": 2} | more
    return _options("RestorationPairDataset", hr, phase, **more)


def _loaded(dataset, workers):
    torch.manual_seed(0)
    return list(torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=workers))


# -- tests are the same on every run and for every number of workers --------------------------------------------


@pytest.mark.parametrize("kind", ["GaussianNoiseDataset", "JPEGDataset"])
@pytest.mark.parametrize("channels", [1, 3])
def test_test_pairs_are_identical(image_set, kind, channels):
    """Two runs and two worker counts."""
    hr, _ = image_set(4)
    runs = [_loaded(build_dataset(_options(kind, hr, channels=channels)), workers) for workers in (0, 0, 2)]
    for first, *others in zip(*runs, strict=True):
        assert first["lq"].shape == (1, channels, 48, 48)
        assert not torch.equal(first["lq"], first["gt"])
        for other in others:
            assert torch.equal(first["lq"], other["lq"])
            assert first["lq_path"] == other["lq_path"]


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_noise_protocol(image_set, sigma):
    """The release: global seed 0 before each image, normal noise on the float BGR image, no clip, no rounding."""
    hr, _ = image_set(2)
    dataset = build_dataset(_options("GaussianNoiseDataset", hr, sigma=sigma))
    for i, file in enumerate(sorted(hr.iterdir())):
        clean = read_image(file).astype(np.float32) / 255.0
        np.random.seed(0)
        noisy = clean + np.random.normal(0, sigma / 255.0, clean.shape)
        expected = torch.from_numpy(noisy[..., ::-1].transpose(2, 0, 1).astype(np.float32))
        assert torch.equal(dataset[i]["lq"], expected)
        assert dataset[i]["lq"].min() < 0 or dataset[i]["lq"].max() > 1 or sigma < 50


def test_stored_noise_is_that_of_a_picture_file(image_set):
    """The protocol's noise, rounded and clipped to 8 bits."""
    hr, _ = image_set(2)
    for plain, stored in zip(
        *(build_dataset(_options("GaussianNoiseDataset", hr, stored=n)) for n in (0, 1)), strict=True
    ):
        codes = stored["lq"] * 255
        assert torch.equal(codes, codes.round()) and codes.min() == 0 and codes.max() == 255
        assert (stored["lq"] - plain["lq"].clamp(0, 1)).abs().max() <= 0.5001 / 255
    torch.manual_seed(0)
    mixed = build_dataset(_options("GaussianNoiseDataset", hr, "train", stored=0.5))
    kinds = [bool((s["lq"] * 255).frac().abs().max() < 1e-3) for s in (mixed[0] for _ in range(40))]
    assert 10 <= sum(kinds) <= 30
    torch.manual_seed(0)
    without = build_dataset(_options("GaussianNoiseDataset", hr, "train"))[0]
    torch.manual_seed(0)  # samples of trainings that do not ask for it stay what they were
    assert torch.equal(build_dataset(_options("GaussianNoiseDataset", hr, "train", stored=0))[0]["lq"], without["lq"])


def test_jpeg_grey_and_colour(image_set):
    """Grey compresses MATLAB's Y; colour goes through 4:2:0 unless told otherwise."""
    hr, _ = image_set(1)
    img = read_image(hr / "img000.png")

    def item(**more):
        return build_dataset(_options("JPEGDataset", hr, **more))[0]

    grey = to_grey(img)
    assert torch.equal(item(channels=1)["gt"][0], torch.from_numpy(grey[..., 0] / np.float32(255)))
    expected = jpeg_roundtrip(grey, 30)[..., 0] / np.float32(255)
    assert torch.equal(item(channels=1)["lq"][0], torch.from_numpy(expected))
    full = jpeg_roundtrip(img, 30, "4:4:4")[..., ::-1].transpose(2, 0, 1) / np.float32(255)
    assert torch.equal(item(subsampling="4:4:4")["lq"], torch.from_numpy(full))
    assert not torch.equal(item()["lq"], item(subsampling="4:4:4")["lq"])


def test_grey_conversions():
    """Y of rgb2ycbcr spans 16..235; luma is OpenCV's grey."""
    import cv2

    img = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_grey(img, "luma")[..., 0], cv2.cvtColor(img, cv2.COLOR_BGR2GRAY))
    b, g, r = img.astype(np.float64).transpose(2, 0, 1)
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    np.testing.assert_array_equal(to_grey(img, "y")[..., 0], np.floor(y + 0.5))
    assert to_grey(np.full((1, 1, 3), 255, np.uint8), "y") == 235


# -- training: random per sample, from torch's state ------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(DEGRADATIONS))
def test_training_samples(image_set, kind):
    """Shapes, fresh noise per visit and per worker, and the same again from the same seed."""
    hr, _ = image_set(2, side=40)
    dataset = build_dataset(_options(kind, hr, "train"))
    torch.manual_seed(1)
    first, second = dataset[0], dataset[0]
    assert first["lq"].shape == first["gt"].shape == (3, 24, 24)
    assert not torch.equal(first["lq"] - first["gt"], second["lq"] - second["gt"])
    torch.manual_seed(1)
    again = dataset[0]
    assert torch.equal(again["lq"], first["lq"])
    assert torch.equal(again["gt"], first["gt"])
    error = (first["lq"] - first["gt"]).square().mean().sqrt() * 255
    assert 0.5 < error < 60
    per_worker = _loaded(torch.utils.data.Subset(dataset, [0, 0]), 2)
    assert not torch.equal(per_worker[0]["lq"], per_worker[1]["lq"])


def test_training_pair_shows_one_place(image_set):
    """Crop, mirror and rotation treat both images alike: reducing the patch gives about its LR patch."""
    from qmambair_basicsr.data.matlab_resize import imresize

    hr, lr = image_set(1, side=64)
    dataset = build_dataset(_pairs(hr, lr, "train", gt_size=48))
    for _ in range(16):  # all eight orientations come up
        item = dataset[0]
        gt, lq = (item[k].numpy().transpose(1, 2, 0) for k in ("gt", "lq"))
        inner = (imresize(gt, 0.5) - lq)[3:-3, 3:-3]  # away from the patch's borders
        assert np.abs(inner).max() < 1.5 / 255


def test_list_of_levels(image_set):
    """Training picks among the listed strengths; a test refuses a list."""
    hr, _ = image_set(1)
    dataset = build_dataset(_options("GaussianNoiseDataset", hr, "train", sigma=[5, 50]))
    spread = [float((s["lq"] - s["gt"]).std() * 255) for s in (dataset[0] for _ in range(20))]
    assert {round(s / 45) for s in spread} == {0, 1}
    with pytest.raises(ValueError, match="a test needs one sigma"):
        build_dataset(_options("GaussianNoiseDataset", hr, sigma=[5, 50]))


# -- pairs -------------------------------------------------------------------------------------------------------


def test_pairs_equal_basicsr(image_set):
    """Test pairs are those of BasicSR's PairedImageDataset, for odd sizes too."""
    hr, lr = image_set(3, side=49)
    ours, stock = (
        build_dataset(_pairs(hr, lr) | {"type": t}) for t in ("RestorationPairDataset", "PairedImageDataset")
    )
    assert len(ours) == len(stock) == 3
    stock_items = {item["gt_path"]: item for item in (stock[i] for i in range(3))}  # it does not sort its folder
    for i in range(3):
        mine = ours[i]
        theirs = stock_items[mine["gt_path"]]
        assert mine["gt"].shape == (3, 48, 48)
        assert mine.keys() == theirs.keys()
        for key in ("lq", "gt"):
            assert torch.equal(mine[key], theirs[key])
        assert (mine["lq_path"], mine["gt_path"]) == (theirs["lq_path"], theirs["gt_path"])


def test_lmdb_equals_folder(image_set):
    """LMDBs made by prepare_data hold the same images, for pairs and for a single-folder dataset, with workers."""
    hr, lr = image_set(3)
    root = hr.parents[1]
    argv = ["lmdb", "--set", "set", "--root", str(root), "--scales", "2"]
    assert prepare_data(argv) == 0
    disk = build_dataset(_pairs(hr, lr))
    options = _pairs(f"{hr}.lmdb", f"{lr}.lmdb", io_backend={"type": "lmdb"}, check_files=True)
    for a, b in zip(disk, _loaded(build_dataset(options), 2), strict=True):
        assert torch.equal(a["lq"], b["lq"][0])
        assert torch.equal(a["gt"], b["gt"][0])
        assert b["lq_path"] == [Path(a["gt_path"]).stem]
    single = _options("JPEGDataset", f"{hr}.lmdb", io_backend={"type": "lmdb"})
    assert torch.equal(build_dataset(single)[1]["lq"], build_dataset(_options("JPEGDataset", hr))[1]["lq"])


def test_meta_info_file_selects(image_set, tmp_path):
    """Only the listed images, in their order; a listed file that is missing is named."""
    hr, lr = image_set(4)
    (tmp_path / "meta.txt").write_text("img002.png (48,48,3)\n\nimg000.png (48,48,3)\n")
    dataset = build_dataset(_pairs(hr, lr, meta_info_file=str(tmp_path / "meta.txt")))
    assert [Path(item["gt_path"]).stem for item in dataset] == ["img002", "img000"]
    (tmp_path / "meta.txt").write_text("img009.png\n")
    with pytest.raises(ValueError, match=r"img009\.png"):
        build_dataset(_pairs(hr, lr, meta_info_file=str(tmp_path / "meta.txt"), check_files=True))


# -- options -----------------------------------------------------------------------------------------------------


OURS = sorted(name for name, _ in DATASET_REGISTRY if DATASET_REGISTRY.get(name).__module__.startswith("qmambair"))


@pytest.mark.parametrize("side", [22, 24, 30])
def test_middle_of_test_images(image_set, side):
    """Input and truth are the middle of the whole pair, at the same place, whatever is left over at the borders."""
    hr, lr = image_set(2)
    cuts, wholes = (build_dataset(_pairs(hr, lr, **more)) for more in ({"middle": side}, {}))
    for cut, whole in zip(cuts, wholes, strict=True):
        for kind, scale in (("lq", 1), ("gt", 2)):
            height, width = whole[kind].shape[1:]
            assert cut[kind].shape == (3, side // 2 * scale, side // 2 * scale) and min(height, width) > side // 2 * scale
            top, left = ((n // scale * 2 - side) // 2 // 2 * scale for n in (height, width))
            end = top + side // 2 * scale, left + side // 2 * scale
            assert torch.equal(cut[kind], whole[kind][:, top : end[0], left : end[1]])
            assert abs(height - top - end[0]) <= scale, "as much above as below"


def test_middle_of_images_without_inputs(image_set):
    """The input is made from the middle; an image that is smaller than it stays whole."""
    hr, _ = image_set(2)
    whole, cut, all_of_it = (
        build_dataset(_options("GaussianNoiseDataset", hr, **more)) for more in ({}, {"middle": 20}, {"middle": 999})
    )
    top, left = ((n - 20) // 2 for n in whole[0]["gt"].shape[1:])
    assert torch.equal(cut[0]["gt"], whole[0]["gt"][:, top : top + 20, left : left + 20])
    assert cut[0]["lq"].shape == (3, 20, 20) and not torch.equal(cut[0]["lq"], cut[0]["gt"])
    assert torch.equal(all_of_it[0]["gt"], whole[0]["gt"])


@pytest.mark.parametrize("middle", [21, 20, "24", 24.0, 0])
def test_bad_middles(image_set, middle):
    hr, lr = image_set(2)
    with pytest.raises(ValueError, match="multiple of the scale 2 and at least 22, got"):
        build_dataset(_pairs(hr, lr, middle=middle))


def test_registered():
    """The registry holds them under these names."""
    assert OURS == ["CameraNoiseDataset", "GaussianNoiseDataset", "JPEGDataset", "RestorationPairDataset"]


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"check_file": True}, ValueError, "unknown key 'check_file'.*'check_files'.*allowed: .*dataroot_gt"),
        ({"dataroot_gt": None}, ValueError, "dataroot_gt is required"),
        ({"dataroot_gt": "no/such"}, FileNotFoundError, r"no/such.*prepare_data"),
        ({"gt_size": None}, ValueError, "gt_size"),
        ({"gt_size": 500}, ValueError, "at least 500 x 500"),
        ({"on_error": "ignore"}, ValueError, "stop, skip, got 'ignore'"),
        ({"channels": 4}, ValueError, "1, 3, got 4"),
        ({"grey": "mean"}, ValueError, "y, luma, got 'mean'"),
        ({"middle": 24}, ValueError, "middle is for tests"),
    ],
)
def test_bad_options(image_set, kind, change, error, words):
    """Every dataset refuses what it does not know, and says what it allows."""
    hr, lr = image_set(2)
    options = (_pairs(hr, lr, "train") if "Pair" in kind else _options(kind, hr, "train")) | change
    with pytest.raises(error, match=words):
        build_dataset(options | {"check_files": True})[0]


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("GaussianNoiseDataset", {"sigma": None}, "sigma must be one or a list"),
        ("GaussianNoiseDataset", {"sigma": -1}, "at least 0, got -1"),
        ("GaussianNoiseDataset", {"sigma": 25, "scale": 2}, "scale is 2"),
        ("GaussianNoiseDataset", {"stored": 1.5}, "stored must be a share from 0 to 1, got 1.5"),
        ("GaussianNoiseDataset", {"stored": True}, "got True"),
        ("GaussianNoiseDataset", {"stored": 0.5, "phase": "val"}, "0 or 1 in a test, got 0.5"),
        ("JPEGDataset", {"quality": 0}, "from 1 to 100, got 0"),
        ("JPEGDataset", {"quality": [10, 30.5]}, r"got \[10, 30.5\]"),
        ("JPEGDataset", {"subsampling": "4:1:1"}, "4:2:0, 4:4:4"),
        ("CameraNoiseDataset", {"shot": [1, 0.1]}, "ascending positive"),
        ("CameraNoiseDataset", {"phase": "val"}, "training pairs"),
    ],
)
def test_bad_levels(image_set, kind, change, words):
    """Strengths out of range."""
    hr, _ = image_set(1)
    with pytest.raises(ValueError, match=words):
        build_dataset(_options(kind, hr, "train") | change)


# -- camera noise ------------------------------------------------------------------------------------------------


def test_camera_noise_statistics():
    """No noise changes nothing; noise grows with its parameters, is spatially correlated and keeps the mean."""
    img = np.full((64, 64, 3), 120, np.uint8)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(camera_noise(img, 0, 0, rng), img)
    weak, strong = (camera_noise(img, shot, 0.01, rng).astype(float) - 120 for shot in (1e-4, 5e-3))
    assert 1 < weak.std() < strong.std() < 40
    assert abs(strong.mean()) < 2
    neighbours = np.corrcoef(strong[:, :-1, 2].ravel(), strong[:, 1:, 2].ravel())[0, 1]
    assert neighbours > 0.3
    with pytest.raises(ValueError, match="colour image"):
        camera_noise(img[..., :1], 0.1, 0.1, rng)
    with pytest.raises(ValueError, match="not be negative"):
        camera_noise(img, -0.1, 0.1, rng)
