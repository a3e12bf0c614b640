"""Metrics refuse what they would pass over: misspelt arguments, quoted booleans, borders that leave too little."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric, calculate_psnr, calculate_ssim
from basicsr.utils.registry import METRIC_REGISTRY
from skimage import data as photos

from qmambair_basicsr.metrics import strict_metric
from qmambair_basicsr.metrics.perceptual import MetricError
from qmambair_basicsr.metrics.strict_metric import FACTS, better_of, check_metric, needs_truth, prepare_metric

ALL = sorted(METRIC_REGISTRY.keys())
NUMPY = [kind for kind in ALL if not kind.endswith("_pt")]
CLEAN = np.ascontiguousarray(photos.astronaut()[:208, :208, ::-1])
NOISY = np.clip(CLEAN + np.random.default_rng(0).normal(0, 9, CLEAN.shape), 0, 255).astype(np.uint8)


def value(kind, img=NOISY, img2=CLEAN, border=2, **options):
    if kind.endswith("_pt"):
        img, img2 = (torch.from_numpy(i / 255.0).permute(2, 0, 1)[None] for i in (img, img2))
    return calculate_metric({"img": img, "img2": img2}, {"type": kind, "crop_border": border, **options})


def test_all_are_checked():
    """Every registered metric, with the arguments it names and no ``**kwargs`` behind them."""
    assert {"calculate_psnr", "calculate_ssim", "calculate_niqe", "calculate_lpips", "calculate_st_lpips"} <= set(ALL)
    for kind in ALL:
        metric = METRIC_REGISTRY.get(kind)
        assert all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(metric).parameters.values())
        before = metric
        strict_metric.install()
        assert METRIC_REGISTRY.get(kind) is before


def test_figures_are_those_of_the_metric():
    options = {"crop_border": 3, "test_y_channel": True}
    for kind, stock in (("calculate_psnr", calculate_psnr), ("calculate_ssim", calculate_ssim)):
        assert value(kind, border=3, test_y_channel=True) == stock(NOISY, CLEAN, **options)
        assert value(kind, border=3, test_y_channel=True, better="higher") == stock(NOISY, CLEAN, **options)
    assert math.isinf(value("calculate_psnr", CLEAN))
    assert needs_truth("calculate_psnr") and not needs_truth("calculate_niqe")
    niqe = {"type": "calculate_niqe", "crop_border": 0, "better": "lower"}
    assert 0 < calculate_metric({"img": CLEAN}, niqe) == calculate_metric({"img": CLEAN, "img2": CLEAN}, niqe) < 20


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_boder": 2}, r"unknown argument 'crop_boder' \(did you mean 'crop_border'\?\); allowed: "),
        ({"whatever": 2}, "unknown argument 'whatever'"),
        ({"border": "2"}, "crop_border must be a whole number of pixels, at least 0, got '2'"),
        ({"border": -2}, "at least 0, got -2"),
        ({"border": 1.5}, "got 1.5"),
        ({"border": True}, "got True"),
        ({"better": "smaller"}, "better must be higher or lower, got 'smaller'"),
    ],
)
def test_arguments(kind, options, words):
    with pytest.raises(MetricError, match=f"{kind}: .*{words}"):
        value(kind, **options)


@pytest.mark.parametrize("kind", ["calculate_psnr", "calculate_ssim"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test_y_channel": "false"}, r"test_y_channel must be true or false \(unquoted\), got 'false'"),
        ({"test_y_channel": 1}, "got 1"),
        ({"input_order": "WHC"}, "input_order must be one of HWC, CHW, HW, got 'WHC'"),
    ],
)
def test_kinds_of_values(kind, options, words):
    with pytest.raises(MetricError, match=words):
        value(kind, **options)


@pytest.mark.parametrize("kind", ALL)
def test_direction(kind):
    """Figures of a worse image are worse in the direction that the metric is known to have."""
    better = better_of({"type": kind})
    assert better == ("lower" if kind in ("calculate_lpips", "calculate_st_lpips", "calculate_niqe") else "higher")
    wrong = {"higher": "lower", "lower": "higher"}[better]
    with pytest.raises(MetricError, match=f"{better} is better, but better: {wrong} is set"):
        value(kind, better=wrong)
    if kind == "calculate_lpips":
        return  # its weights are not shipped
    if kind == "calculate_st_lpips":
        pytest.importorskip("stlpips_pytorch")
    worse = np.random.default_rng(1).integers(0, 256, CLEAN.shape, dtype=np.uint8)
    good, bad = (float(value(kind, img, border=0, better=better)) for img in (NOISY, worse))
    assert good > bad if better == "higher" else good < bad


@pytest.mark.parametrize("kind", ALL)
def test_least_side(kind):
    """One pixel less than the metric needs is refused with the sizes; what it needs gives a figure."""
    facts = FACTS.get(kind, strict_metric.Facts())
    tall = facts.blocks  # NIQE needs two blocks
    for border in (0, 4):
        side = facts.least + 2 * border
        small = CLEAN[: tall * facts.least + 2 * border, :side]
        with pytest.raises(MetricError, match=f"crop_border {border} leaves .* too few for .*{facts.least} x"):
            value(kind, small[:, : side - 1], small[:, : side - 1], border=border)
        if kind == "calculate_lpips" or (kind == "calculate_st_lpips" and not _installed("stlpips_pytorch")):
            continue
        figure = value(kind, small, small, border=border)
        assert not math.isnan(float(figure))
    if facts.blocks > 1:
        with pytest.raises(MetricError, match="too few"):
            value(kind, CLEAN[: facts.least, : facts.least], CLEAN[: facts.least, : facts.least], border=0)


def _installed(package):
    try:
        __import__(package)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("kind", [kind for kind in ALL if needs_truth(kind)])
def test_images_that_do_not_belong_together(kind):
    with pytest.raises(MetricError, match="different shapes cannot be compared"):
        value(kind, NOISY[:100], CLEAN)
    if kind in NUMPY:
        with pytest.raises(MetricError, match="there is none"):
            calculate_metric({"img": NOISY}, {"type": kind, "crop_border": 0})


def test_flat_image_has_no_niqe():
    with pytest.raises(MetricError, match="is it flat"):
        value("calculate_niqe", np.full((192, 192, 3), 7, np.uint8), border=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (None, "val: metrics: psnr: expected"),
        ({"crop_border": 2}, "val: metrics: psnr: expected"),
        ({"type": "calculate_psrn", "crop_border": 2}, r"'calculate_psrn' \(did you mean 'calculate_psnr'\?\)"),
        ({"type": "calculate_psnr"}, "val: metrics: psnr: calculate_psnr: crop_border is missing"),
        ({"type": "calculate_psnr", "crop_border": 2, "test_y_chanel": True}, "did you mean 'test_y_channel'"),
    ],
)
def test_entries_are_checked_before_any_image(options, words):
    with pytest.raises(MetricError, match=words):
        check_metric("psnr", options)


def test_missing_weights_are_found_before_any_image(tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    strict_metric.lpips_network.cache_clear()
    with pytest.raises(MetricError, match=r"needs the ImageNet weights vgg16"):
        prepare_metric({"type": "calculate_lpips", "net": "vgg"})
