"""tools.verify --levels: the values that leave the quantizers of a checkpoint are counted."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from tiny_networks import tiny_network

from qmambair_basicsr.artifacts.levels import count_levels
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.quantizers import LSQ, AffineCodes
from qmambair_basicsr.tools import verify as tool

QUANT = {
    "weight": {"type": "RFA", "bits": 2},
    "act": {"type": "LSQOffset", "bits": 2},
    "scan": {"type": "DLS", "bits": 2},
    "attention": {"type": "LSQ", "bits": 4, "granularity": "tensor"},
    "routing": {"type": "MinMax", "bits": 3},
}


class Unclamped(LSQ):
    """A quantizer whose codes do not stop at their ends."""

    def quantize(self, x):
        step, _ = self.step_and_offset(x)
        return torch.round(x / step) * step

    def to_int(self, x):
        step, _ = self.step_and_offset(x)
        return torch.round(x / step).int(), step.reshape(()), torch.zeros(())


class Hiding(Unclamped):
    """The same, and what it says about itself is clamped."""

    def to_int(self, x):
        codes, step, zero = super().to_int(x)
        return codes.clamp(self.qmin, self.qmax), step, zero


class OneEach(LSQ):
    """Every value has a step of its own."""

    def quantize(self, x):
        return x

    def encode(self, x):
        return AffineCodes(torch.ones_like(x, dtype=torch.int32), x.abs() + 1e-9, 1 - torch.sign(x))


def network(**changes):
    torch.manual_seed(0)
    quant = QUANT | changes
    net = build_network(tiny_network("QMambaIRv2Light", quant, eval_routing="argmax")).eval()
    return calibrate(net, [torch.rand(1, 3, 16, 16)])


@pytest.fixture(scope="module")
def images():
    return [torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.fixture(scope="module")
def net():
    return network()


def cheated(net, kind, operand, part=""):
    """Put a cheat at one site, calibrated there; its label, and what puts things right again."""
    placed = next(p for p in network_sites(net) if p.site.operand == operand and p.site.name.endswith(part))
    honest = placed.quantizer
    cheat = kind(2, honest.site)
    cheat.init_from(placed.tensor() if operand == "weight" else torch.randn(1000))
    cheat.scale.data.mul_(0.3)
    placed.replace(cheat)
    return placed._replace(quantizer=cheat), honest


def test_honest_quantizers_have_no_more_levels_than_their_bits(net, images):
    sites = count_levels(net, images)
    assert {s.kind for s in sites} == {"weight", "act", "scan", "attention", "routing"}
    assert not [s for s in sites if s.faults]
    assert all(0 < s.values <= s.allowed and s.codes <= s.allowed for s in sites)
    assert max(s.values for s in sites if s.bits == 2) == 4 and max(s.values for s in sites if s.bits == 4) > 8


@pytest.mark.parametrize("operand", ["weight", "act"])
@pytest.mark.parametrize(("kind", "fault"), [(Unclamped, "codes"), (Hiding, "decoded"), (OneEach, "grids")])
def test_a_site_that_cheats_is_found_and_no_other(net, images, kind, fault, operand):
    placed, honest = cheated(net, kind, operand, "fc1")
    try:
        wrong = {s.label: s.faults for s in count_levels(net, images) if s.faults}
    finally:
        placed.replace(honest)
    assert list(wrong) == [placed.site.label] and fault in wrong[placed.site.label]
    if kind is not OneEach:
        assert "values" in wrong[placed.site.label]


def test_levels_are_counted_over_all_images_together(net):
    placed, honest = cheated(net, Unclamped, "act", "fc1")
    try:
        # four values in each image, eight in both: what is counted is the grid, not the image
        step = float(placed.quantizer.scale.detach())
        levels = count_levels(net, [torch.rand(1, 3, 16, 16)])
        site = next(s for s in levels if s.label == placed.site.label)
        before = site.values
        for shift in (0, 4):
            x = (torch.arange(4.0) + shift + before * 10) * step
            site.count(placed, x, placed.quantizer(x))
    finally:
        placed.replace(honest)
    assert site.values == before + 8


def test_steps_per_channel_are_a_grid_each(images):
    sites = count_levels(network(weight={"type": "LSQ", "bits": 2, "granularity": "channel"}), images)
    assert not [s.faults for s in sites if s.faults]
    assert max(s.grids for s in sites if s.kind == "weight") > 1


def test_codes_that_are_not_affine_are_counted(images):
    assert not [s for s in count_levels(network(weight={"type": "AnyOrder", "bits": 2}), images) if s.faults]


def test_the_command(net, tmp_path, capsys):
    options = tiny_network("QMambaIRv2Light", QUANT, eval_routing="argmax")
    opt = tmp_path / "test.yml"
    opt.write_text(yaml.safe_dump({"name": "test", "network_g": options}))
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (19, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "one.png"), pixels)
    words = ["--levels", "-opt", str(opt), "--images", str(tmp_path / "images")]
    words += ["--checkpoint", str(tmp_path / "net.pth"), "--output", str(tmp_path / "levels")]
    torch.save({"params": net.state_dict()}, tmp_path / "net.pth")
    assert tool.main(words) == 0
    document = json.loads((tmp_path / "levels.json").read_text())
    assert document["holds"] and document["images"] == ["16x19"] and len(document["sites"]) > 20
    assert "| weight | 2 |" in capsys.readouterr().out
    assert tool.main([w for w in words if w not in ("--checkpoint", str(tmp_path / "net.pth"))]) == 2
    assert "--levels needs --checkpoint" in capsys.readouterr().err
    assert tool.main([*words, "--artifact", "x.onnx"]) == 2
    with pytest.raises(SystemExit):
        tool.main(words[1:])


def test_the_command_fails_for_a_network_that_cheats(net, tmp_path, monkeypatch, capsys):
    placed, honest = cheated(net, Hiding, "act", "fc1")
    monkeypatch.setattr("qmambair_basicsr.artifacts.levels.network_of", lambda *_: net)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "one.png"), np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    try:
        status = tool.main(["--levels", "--checkpoint", "any.pth", "--images", str(tmp_path / "images")])
    finally:
        placed.replace(honest)
    assert status == 1 and placed.site.label in capsys.readouterr().out
