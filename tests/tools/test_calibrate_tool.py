"""tools.calibrate writes a network that the other tools take, and says what is wrong with its arguments."""

from __future__ import annotations

import json

import cv2
import pytest
import torch
from basicsr.archs import build_network
from skimage import data
from tiny_networks import TINY_NETWORK

from qmambair_basicsr.inference.networks import network_of
from qmambair_basicsr.layers.sites import uncalibrated
from qmambair_basicsr.tools import calibrate as tool

NETWORK = {k: TINY_NETWORK[k] for k in ("embed_dim", "depths", "d_state", "mlp_ratio", "upscale", "upsampler")}
QUANT = {kind: {"type": name, "bits": 4} for kind, name in (("weight", "RFA"), ("act", "LSQOffset"), ("scan", "DLS"))}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), data.astronaut()[40 * i : 40 * i + 30, 100:128])
    for name, quant in (("quantized", {"quant": QUANT}), ("full", {})):
        kind = "QMambaIR" if quant else "MambaIR"
        (tmp_path / f"{name}.yml").write_text(json.dumps({"network_g": {"type": kind, **NETWORK, **quant}}))
    return tmp_path


def command(folder, *more, opt="quantized.yml", images="images"):
    fixed = ["-opt", folder / opt, "--images", folder / images, "--output", folder / "net.pth", "--middle", "16"]
    return [str(word) for word in (*fixed, *more)]


def test_weights_are_those_of_the_checkpoint(folder, capsys):
    torch.manual_seed(1)
    full = build_network({"type": "MambaIR", **NETWORK})
    torch.save({"params": full.state_dict()}, folder / "full.pth")
    assert tool.main(command(folder, "--checkpoint", folder / "full.pth", "--count", "2")) == 0
    assert "full.pth, 2 images" in capsys.readouterr().out
    net = network_of(str(folder / "quantized.yml"), str(folder / "net.pth"))
    assert not uncalibrated(net)
    state = net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in full.state_dict().items())


def test_random_weights_are_those_of_the_seed(folder, capsys):
    states = []
    for seed in ("3", "3", "4"):
        assert tool.main(command(folder, "--seed", seed)) == 0
        assert f"random weights (seed {seed}), 3 images" in capsys.readouterr().out
        states.append(torch.load(folder / "net.pth", weights_only=True)["params"])
    same, other = (all(torch.equal(v, states[0][k]) for k, v in state.items()) for state in states[1:])
    assert same and not other


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"opt": "full.yml"}, [], "full.yml: network_g has no quant block"),
        ({"opt": "gone.yml"}, [], "there is no file"),
        ({"images": "gone"}, [], "gone: no such folder"),
        ({}, ["--checkpoint", "gone.pth"], "gone.pth"),
    ],
)
def test_mistakes_are_said(folder, capsys, changes, more, message):
    assert tool.main(command(folder, *more, **changes)) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "net.pth").exists()
