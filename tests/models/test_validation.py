"""Validations and tests whose figures mean what they say: labels, ground truth, NaN, directions, names."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from qmambair_basicsr import checkpoints, cli
from qmambair_basicsr.metrics.perceptual import MetricError
from qmambair_basicsr.models.mambair_model import MambaIRModel
from qmambair_basicsr.models.validation import FailedTestError, ValidationError

PSNR = {"type": "calculate_psnr", "crop_border": 0}
NIQE = {"type": "calculate_niqe", "crop_border": 0}


@ARCH_REGISTRY.register()
class DoubleNet(nn.Module):
    """Repeats every pixel, times a weight."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return (x * self.gain).repeat_interleave(2, -2).repeat_interleave(2, -1)


def section(pairs, name="pairs", truth=True, **more):
    opt = {"name": name, "dataroot_lq": str(pairs / "lq"), "io_backend": {"type": "disk"}, "phase": "val", "scale": 2}
    if truth:
        return opt | {"type": "RestorationPairDataset", "dataroot_gt": str(pairs / "gt"), **more}
    return opt | {"type": "SingleImageDataset", **more}


@pytest.fixture
def model_of(parsed, train_options, tmp_path):
    """``model_of(sets, metrics, is_train)``: a model and the loaders of its sets."""

    def make(sets, metrics=None, is_train=False, save_img=False, **path):
        train_options["network_g"] = {"type": "DoubleNet"}
        opt = parsed(train_options, is_train)
        if not is_train:
            del opt["datasets"]["train"]
        opt["datasets"] |= {f"val_{i}": s for i, s in enumerate(sets)}
        opt["path"] |= {"visualization": str(tmp_path / "pictures"), **path}
        opt["val"] = {"metrics": metrics, "save_img": save_img, "suffix": None}
        loaders = [build_dataloader(build_dataset(s), s, num_gpu=0) for s in sets]
        return build_model(opt), loaders

    return make


def validate(model, loaders, iteration=0, save_img=False):
    """Figures by set, as they are after each."""
    figures = {}
    for loader in loaders:
        model.validation(loader, iteration, None, save_img)
        figures[loader.dataset.opt["name"]] = dict(getattr(model, "metric_results", {}))
    return figures


# -- label of the last validation --------------------------------------------------------------------------------------


def test_label_is_the_last_iteration_that_was_trained(loop, train_options, pairs, monkeypatch):
    """BasicSR's loop counts on before it validates at its end: log, pictures and best result."""
    train_options["datasets"]["val"] = section(pairs)
    train_options["datasets"]["val"].pop("phase")
    train_options["datasets"]["train"]["num_worker_per_gpu"] = 0
    train_options["train"] |= {"total_iter": 3, "ema_decay": 0}
    train_options["network_g"] = {"type": "DoubleNet"}
    train_options["val"] = {"val_freq": 2, "save_img": True, "metrics": {"psnr": PSNR}}
    labels = []
    update = MambaIRModel._update_best_metric_result
    monkeypatch.setattr(
        MambaIRModel, "_update_best_metric_result", lambda *args: labels.append(args[-1]) or update(*args)
    )
    loop.here(train_options)
    pictures = sorted(f.name for f in (loop.folder / "experiments/run/visualization/0").iterdir())
    assert pictures == ["0_2.png", "0_3.png"]
    assert labels == [2, 3]


# -- ground truth --------------------------------------------------------------------------------------------------


def test_sets_with_and_without_ground_truth(model_of, pairs, caplog):
    """Each is measured by what it can be measured by, in either order; the others are said at the start."""
    logging.getLogger("basicsr").propagate = True
    expected = None
    for sets in ([section(pairs), section(pairs, "photos", False)], [section(pairs, "photos", False), section(pairs)]):
        caplog.clear()
        model, loaders = model_of(sets, {"psnr": PSNR})
        assert "photos: no ground truth (dataroot_gt), so psnr will not be computed there" in caplog.text
        figures = validate(model, loaders)
        assert figures["photos"] == {} and 5 < figures["pairs"]["psnr"] < 60
        assert expected in (None, figures["pairs"]["psnr"])
        expected = figures["pairs"]["psnr"]


def test_a_validation_image_is_not_compared_with_a_training_patch(model_of, pairs):
    """The last training batch, as large as the result, is still in the model's hands."""
    model, loaders = model_of([section(pairs, "photos", False)], {"psnr": PSNR}, is_train=True)
    model.feed_data({"lq": torch.rand(1, 3, 24, 24), "gt": torch.rand(1, 3, 48, 48)})
    assert validate(model, loaders) == {"photos": {}}


def test_metrics_without_reference_need_no_ground_truth(model_of, pairs):
    for file in (pairs / "lq").iterdir():
        cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    model, loaders = model_of([section(pairs, "photos", False)], {"psnr": PSNR, "niqe": NIQE})
    assert list(validate(model, loaders)["photos"]) == ["niqe"]
    assert model.best_metric_results["photos"]["niqe"]["better"] == "lower"


# -- NaN and infinity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(model_of, pairs, tmp_path, gain):
    torch.save({"params": {"gain": torch.tensor([gain])}}, tmp_path / "bad.pth")
    with pytest.raises(checkpoints.NonFiniteWeightsError, match=r"bad\.pth: gain holds NaN or infinity") as caught:
        model_of([section(pairs)], {"psnr": PSNR}, pretrain_network_g=str(tmp_path / "bad.pth"))
    assert cli.exit_code(caught.value) == 1 and cli.is_mistake(caught.value)


@pytest.mark.parametrize("gain", [math.nan, math.inf])
def test_output_that_is_not_finite(model_of, pairs, gain, caplog):
    """A test fails and names the image; a training goes on with nan, which is never the best."""
    sets = [section(pairs)]
    model, loaders = model_of(sets, {"psnr": PSNR})
    with torch.no_grad():
        model.net_g.gain.fill_(gain)
    with pytest.raises(FailedTestError, match=r"output for .*lq/0\.png is NaN or infinite") as caught:
        validate(model, loaders)
    assert cli.exit_code(caught.value) == 1
    logging.getLogger("basicsr").propagate = True
    model, loaders = model_of(sets, {"psnr": PSNR}, is_train=True)
    first = validate(model, loaders)["pairs"]["psnr"]
    net = model.net_g_ema
    with torch.no_grad():
        net.gain.fill_(gain)
    assert math.isnan(validate(model, loaders)["pairs"]["psnr"])
    assert "0.png is NaN or infinite: the metrics of this validation are nan" in caplog.text
    assert model.best_metric_results["pairs"]["psnr"]["val"] == first
    with torch.no_grad():
        net.gain.fill_(1)
    assert validate(model, loaders)["pairs"]["psnr"] == first


# -- metrics -------------------------------------------------------------------------------------------------------


def test_best_follows_the_direction_of_the_metric(model_of, pairs):
    """Without ``better``, with it, and with records of older runs that had the wrong one."""
    metrics = {"psnr": PSNR, "niqe": NIQE, "again": NIQE | {"better": "lower"}}
    model, _ = model_of([section(pairs)], metrics, is_train=True)
    model.best_metric_results = {"pairs": {"niqe": {"better": "higher", "val": 99.0, "iter": 1}}}
    model._non_finite = []
    model._initialize_best_metric_results("pairs")
    for iteration, figure in enumerate((5.0, 3.0, 4.0)):
        for name in metrics:
            model._update_best_metric_result("pairs", name, figure, iteration)
    best = {name: (record["val"], record["iter"]) for name, record in model.best_metric_results["pairs"].items()}
    assert best == {"psnr": (5.0, 0), "niqe": (3.0, 1), "again": (3.0, 1)}


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (PSNR | {"test_y_chanel": True}, "val: metrics: m: .*did you mean 'test_y_channel'"),
        (PSNR | {"better": "smaller"}, "better must be"),
        ({"type": "calculate_psnr"}, "crop_border is missing"),
        ({"type": "calculate_pnsr", "crop_border": 0}, "did you mean 'calculate_psnr'"),
    ],
)
def test_metrics_are_checked_when_the_model_is_built(model_of, pairs, metric, words):
    with pytest.raises(MetricError, match=words):
        model_of([section(pairs)], {"m": metric}, is_train=True)


def test_a_metric_that_cannot_be_computed_names_the_image(model_of, pairs):
    model, loaders = model_of([section(pairs)], {"psnr": PSNR | {"crop_border": 24}})
    with pytest.raises(MetricError, match=r"lq/0\.png: calculate_psnr: crop_border 24 leaves 0 x 0 of 48 x 48"):
        validate(model, loaders)


# -- names of results ----------------------------------------------------------------------------------------------


def test_two_sets_of_one_name(model_of, pairs):
    with pytest.raises(ValidationError, match="2 data sets are called 'pairs'"):
        model_of([section(pairs), section(pairs)], {"psnr": PSNR})


@pytest.mark.parametrize("truth", [True, False])
def test_images_whose_results_would_overwrite_each_other(model_of, pairs, truth):
    """Refused where results are saved, in BasicSR's own data sets too; measured where they are not."""
    for folder in ("gt", "lq"):
        cv2.imwrite(str(pairs / folder / "0.bmp"), cv2.imread(str(pairs / folder / "1.png")))
    model, loaders = model_of([section(pairs, truth=truth)], {"psnr": PSNR})
    with pytest.raises(ValidationError, match="several images are called '0' up to the ending"):
        validate(model, loaders, save_img=True)
    assert len(loaders[0].dataset) == 11
    validate(model, loaders)


def test_pictures_of_several_validation_sets(model_of, pairs):
    """Sets with images of the same names keep their pictures apart."""
    model, loaders = model_of([section(pairs, "a"), section(pairs, "b")], {"psnr": PSNR}, is_train=True)
    model._iteration = 7
    validate(model, loaders, iteration=9, save_img=True)
    folder = Path(model.opt["path"]["visualization"])
    assert {f.name for f in folder.iterdir()} == {"a", "b"}
    assert [(folder / name / "0" / "0_7.png").is_file() for name in "ab"] == [True, True]


def test_a_picture_that_cannot_be_written_names_image_folder_and_room(model_of, pairs, tmp_path, monkeypatch):
    """OpenCV says False on a full disk, and BasicSR that "writing images" failed."""
    model, loaders = model_of([section(pairs)], {"psnr": PSNR}, save_img=True)
    monkeypatch.setattr(cv2, "imwrite", lambda *_, **__: False)
    with pytest.raises(
        ValidationError, match=r"0\.png: its picture cannot be written below .*pictures \([\d,]+ bytes free"
    ):
        model.validation(loaders[0], 1, None, save_img=True)
