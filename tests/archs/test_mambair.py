"""MambaIR against the official implementation's vectors and key sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr.archs.blocks import DropPath

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
SHIPPED = ["light_x2", "light_x3", "classic_3conv_x2", "colordn", "car"]
OFFICIAL = ["light_x2", "classic_x2", "classic_x4", "colordn", "car"]
SMALL = {"embed_dim": 30, "depths": [1, 1], "d_state": 3, "mlp_ratio": 1.2, "drop_path_rate": 0.0}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def check_golden(path: Path) -> None:
    case = torch.load(path, weights_only=True)
    net = build_network({"type": case["arch"], **case["config"]})
    net.load_state_dict(case["params"], strict=True)
    net.eval()
    x = case["input"].clone().requires_grad_()
    out = net(x)
    (out * case["grad_weight"]).sum().backward()
    assert relative_error(out, case["output"]) < 1e-5
    assert relative_error(x.grad, case["input_grad"]) < 1e-5


@pytest.mark.parametrize("name", SHIPPED)
def test_matches_official_vectors(name, instruction_set):
    check_golden(GOLDEN / f"mambair_{name}.pt")


def test_matches_official_classic_x4(shared_dir):
    check_golden(shared_dir / "golden" / "mambair_classic_x4.pt")


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_key_set(name):
    official = json.loads((GOLDEN / "official_state_dicts.json").read_text())[f"MambaIR_{name}"]
    with torch.device("meta"):
        net = build_network({"type": "MambaIR", **official["config"]})
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == official["state_dict"]
    assert sum(p.numel() for p in net.parameters()) == official["num_params"]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 3)])
@pytest.mark.parametrize(
    "tail",
    [{"upsampler": "pixelshuffledirect", "upscale": 3}, {"upsampler": "pixelshuffle", "upscale": 4}, {"in_chans": 1}],
)
def test_any_size(size, tail):
    net = build_network({"type": "MambaIR", **SMALL, **tail}).eval()
    scale = tail.get("upscale", 1)
    channels = tail.get("in_chans", 3)
    out = net(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, size[0] * scale, size[1] * scale)
    assert out.isfinite().all()


def test_checkpointing_changes_nothing():
    config = {"type": "MambaIR", **SMALL, "drop_path_rate": 0.4, "upsampler": "pixelshuffledirect"}
    plain, saving = build_network(config), build_network({**config, "use_checkpoint": True})
    saving.load_state_dict(plain.state_dict())
    x = torch.rand(3, 3, 5, 4)
    results = []
    for net in (plain.train(), saving.train()):
        torch.manual_seed(3)
        out = net(x)
        out.square().mean().backward()
        results.append((out, [p.grad for p in net.parameters()]))
    (out_a, grads_a), (out_b, grads_b) = results
    assert torch.equal(out_a, out_b)
    for a, b in zip(grads_a, grads_b, strict=True):
        torch.testing.assert_close(a, b)


def test_drop_path_is_seeded_and_off_in_evaluation():
    net = build_network({"type": "MambaIR", **SMALL, "drop_path_rate": 0.9})
    x = torch.rand(4, 3, 4, 4)

    def run(seed):
        torch.manual_seed(seed)
        return net(x)

    net.train()
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    net.eval()
    assert torch.equal(run(1), run(2))


def test_drop_path_keeps_the_expectation():
    drop = DropPath(0.25).train()
    out = drop(torch.ones(20000, 1))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_options_without_effect_are_accepted():
    config = {"type": "MambaIR", **SMALL}
    with torch.device("meta"):
        a = build_network(config)
        b = build_network({**config, "img_size": 128, "patch_size": 1, "window_size": 16, "num_heads": [6, 6]})
    assert {k: v.shape for k, v in a.state_dict().items()} == {k: v.shape for k, v in b.state_dict().items()}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"d_sate": 16}, "unknown option 'd_sate'.*did you mean 'd_state'.*allowed: d_state, depths"),
        ({"upsampler": "nearest"}, "unknown upsampler 'nearest'"),
        ({"resi_connection": "2conv"}, "resi_connection must be '1conv' or '3conv', got '2conv'"),
        ({"embed_dim": 24}, "24 channels are fewer than the squeeze factor 30"),
        ({"drop_path_rate": 1.0}, r"p must be in \[0, 1\), got 1"),
    ],
)
def test_wrong_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        build_network({"type": "MambaIR", **{**SMALL, **option}})


def test_wrong_input_is_named():
    net = build_network({"type": "MambaIR", **SMALL})
    with pytest.raises(ValueError, match=r"expected an input of shape \(B, 3, H, W\), got \(1, 1, 4, 4\)"):
        net(torch.rand(1, 1, 4, 4))
