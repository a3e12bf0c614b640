"""tools.verify --backend integer: a packed checkpoint on native kernels beside the fake-quantized network."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from tiny_networks import TINY_NETWORK

from qmambair_basicsr.artifacts.packed import save_packed
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.ops.backend import Backend
from qmambair_basicsr.runtime import NativeNetwork
from qmambair_basicsr.tools import verify as tool

available, reason = Backend("integer", "native").is_available()
pytestmark = pytest.mark.skipif(not available, reason=reason)
NETWORKS = {
    "QMambaIR": ("embed_dim", "depths", "d_state", "mlp_ratio", "upscale", "upsampler"),
    "QMambaIRv2Light": ("embed_dim", "depths", "num_heads", "window_size", "inner_rank", "num_tokens", "d_state",
                        "mlp_ratio", "upscale", "upsampler"),
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def packed(request, tmp_path_factory):
    """A packed checkpoint, a folder of images, and the network."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    quant = {kind: {"type": "LSQOffset", "bits": 4, "search": "none"} for kind in ("weight", "act")}
    quant["scan"] = {"type": "DLS", "bits": 4, "init": {"search": "none"}}
    options = {"type": request.param, **{key: TINY_NETWORK[key] for key in NETWORKS[request.param]}, "quant": quant}
    net = build_network(options).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "one.png"), cv2.resize(pixels, (24, 16)))
    calibrate(net, [torch.rand(1, 3, 16, 24)])
    save_packed(net, options, folder / "net.safetensors")
    return folder, net


def run(folder, *more):
    report = folder / "report"
    words = ["--artifact", str(folder / "net.safetensors"), "--images", str(folder / "images"), "--output", str(report)]
    status = tool.main([*words, *more])
    return status, json.loads(report.with_suffix(".json").read_text()), report.with_suffix(".md").read_text()


def test_the_integer_network_is_verified(packed, capsys):
    folder, _ = packed
    status, document, text = run(folder, "--backend", "integer")
    row = document["rows"][-1]
    assert status == 0 and row["name"] == "net.safetensors, integer" and row["verdict"].startswith("verified")
    codes = row["activations"]
    assert codes["own_input_codes"] == codes["codes"] > 0, "every code of the network is looked at"
    assert codes["own_input_equal"] == codes["codes"]
    assert row["fp64"]["equal"] == row["fp64"]["codes"] == codes["codes"]
    assert row["parameters"]["equal"] == row["parameters"]["compared"] > 0
    assert "the lowered network in FP64 has" in text and "integer" in capsys.readouterr().out


def test_a_network_that_computes_something_else_is_not_verified(packed, monkeypatch):
    folder, _ = packed
    forward = NativeNetwork.forward
    monkeypatch.setattr(NativeNetwork, "forward", lambda self, x: forward(self, x) + 0.1)
    status, document, _ = run(folder, "--backend", "integer")
    assert status == 1 and "dB" in document["rows"][-1]["failures"][-1]


def test_mistakes_are_said(packed, capsys):
    folder, _ = packed
    words = ["--artifact", str(folder / "net.safetensors"), "--images", str(folder / "images")]
    assert tool.main(words) == 2
    assert "--checkpoint is needed" in capsys.readouterr().err
    (folder / "net.onnx").write_bytes(b"")
    own = ["--checkpoint", str(folder / "net.safetensors"), "--artifact", str(folder / "net.onnx")]
    assert tool.main([*words, *own, "--backend", "integer"]) == 2
    assert "runs packed checkpoints" in capsys.readouterr().err
