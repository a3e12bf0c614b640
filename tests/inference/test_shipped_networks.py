"""The networks in ``assets``: each file is what the table says, is small, and makes a photograph better."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr
from safetensors import safe_open
from skimage import data

from qmambair_basicsr.artifacts.packed import load_packed
from qmambair_basicsr.data.jpeg_codec import jpeg_roundtrip
from qmambair_basicsr.data.matlab_resize import bicubic_downscale, imresize
from qmambair_basicsr.data.noise import add_gaussian_noise, camera_noise
from qmambair_basicsr.inference.shipped import ASSETS, shipped, shipped_model
from qmambair_basicsr.layers.info import network_info
from qmambair_basicsr.layers.placement import placement
from qmambair_basicsr.recipes.option_names import parse

MODELS = list(shipped().values())
LARGEST = 0.3e6  # bytes
CROP = np.s_[20:116, 180:276]  # astronaut's face and hair
# (degradation of the crop, decibels that the network adds at least); the gains of the whole test sets are larger
CASES = {
    "sr": [("bicubic", 0.6)],
    "denoise": [(10, 1.5), (25, 5.0), (50, 7.0)],
    "jpeg": [(10, 0.5), (40, 0.15)],
    "realdenoise": [((2e-3, 6e-3), 1.5)],
}
DEGRADED = [(model, *case) for model in MODELS for case in CASES[model.task]]


def photograph() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[CROP][..., ::-1])  # BGR


def degraded(task: str, strength, clean: np.ndarray, scale: int) -> np.ndarray:
    if task == "sr":
        return bicubic_downscale(clean, scale)
    if task == "denoise":
        return add_gaussian_noise(clean, strength)
    if task == "jpeg":
        return jpeg_roundtrip(clean, strength)
    return camera_noise(clean, *strength, np.random.default_rng(0))


def as_pixels(img: np.ndarray) -> np.ndarray:
    return img if img.dtype == np.uint8 else np.clip(np.round(img * 255), 0, 255).astype(np.uint8)


def restored(net: torch.nn.Module, img: np.ndarray) -> np.ndarray:
    values = img.astype(np.float32) / 255 if img.dtype == np.uint8 else img
    given = torch.from_numpy(np.ascontiguousarray(values[..., ::-1])).permute(2, 0, 1)[None]
    with torch.no_grad():
        out = net(given)[0]
    return as_pixels(out.permute(1, 2, 0).numpy()[..., ::-1])


def test_the_table_and_the_folder_agree():
    assert sorted(p.stem for p in ASSETS.glob("*.safetensors")) == sorted(m.name for m in MODELS)
    with pytest.raises(ValueError, match=r"unknown name 'sr_x7' \(did you mean 'sr_x\d'\?\)"):
        shipped_model("sr_x7")


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_a_shipped_file_is_what_the_table_says(model):
    assert model.path.stat().st_size <= LARGEST
    net, row = load_packed(model.path), parse(model.options)
    assert (network_info(net).scale, network_info(net).channels) == (model.scale, model.channels)
    with safe_open(model.path, "pt") as file:
        assert json.loads(file.metadata()["network"]) == row.options()["network_g"]
    quantized = [site for site in placement(net) if site.weight != "-" or site.act != "-"]
    assert {site.weight_bits for site in quantized} - {32} == {model.bits[0]}
    assert {site.act_bits for site in quantized} - {32} == {model.bits[1]}


@pytest.mark.parametrize(("model", "strength", "gain"), DEGRADED, ids=lambda v: getattr(v, "name", None))
def test_a_shipped_network_beats_its_input(model, strength, gain):
    clean = photograph()
    given = degraded(model.task, strength, clean, model.scale)
    before = as_pixels(given) if model.scale == 1 else imresize(given, model.scale)
    after = restored(load_packed(model.path), given)
    assert after.shape == clean.shape
    border = model.scale if model.task == "sr" else 0
    scores = [calculate_psnr(img, clean, border, test_y_channel=model.task == "sr") for img in (before, after)]
    assert scores[1] - scores[0] >= gain, scores
