"""Damaged files of every kind that is read: one clear error, or a result; never a traceback, a crash or foreign code.

More than the suite's share: ``QMAMBAIR_CAMPAIGN=2000 pytest tests/campaigns/test_mutated_files.py``;
``QMAMBAIR_CAMPAIGN_SEED`` chooses other damage.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr import checkpoints
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.cli import message_of
from qmambair_basicsr.data.image_files import read_image
from qmambair_basicsr.inference.networks import load_full_precision

COUNT = int(os.environ.get("QMAMBAIR_CAMPAIGN", "120"))
SEED = int(os.environ.get("QMAMBAIR_CAMPAIGN_SEED", "0"))
QUANT = {
    "weight": {"type": "RFA", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
}
SIZES = {
    "upscale": 2,
    "embed_dim": 30,
    "depths": [1],
    "d_state": 2,
    "mlp_ratio": 1.2,
    "upsampler": "pixelshuffledirect",
}
NETWORK = {"type": "QMambaIR", **SIZES, "quant": QUANT}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """What transfers, disks and editors do to a file."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        size = max(len(content), 1)
        place, length = draw.randrange(size), draw.choice((1, 4, 64, 1000))
        kind = draw.randrange(7)
        if kind == 0:
            del content[place:]
        elif kind == 1:
            content[place : place + length] = bytes(len(content[place : place + length]))
        elif kind == 2:
            content[place : place + length] = draw.randbytes(length)
        elif kind == 3:
            del content[place : place + length]
        elif kind == 4:
            content[place:place] = draw.randbytes(length)
        elif kind == 5:
            content[place % 64 : place % 64 + 1] = draw.randbytes(1)  # headers
        elif content:
            content[place] ^= 1 << draw.randrange(8)
    return bytes(content)


def refusal(read: Callable[[], object], path: Path) -> str | None:
    """The message with which ``read`` refuses; None where it gives a result.

    Any other exception, or a message that does not name the file, fails the test.
    """
    try:
        read()
    except Exception as err:
        message = message_of(err)
        assert message is not None, f"{path.name}: {type(err).__name__}: {err}"
        assert path.name in message and "Traceback" not in message and len(message) < 2000, message
        return message
    return None


def campaign(original: bytes, path: Path, read: Callable[[], object], count: int = COUNT) -> int:
    """Read ``count`` damaged copies of a file; how many of them were refused."""
    draw = random.Random(f"{SEED} {path.name}")
    refused = 0
    for _ in range(count):
        path.write_bytes(damaged(original, draw))
        refused += refusal(read, path) is not None
    return refused


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = build_network(copy.deepcopy(NETWORK))
    return calibrate(net, [torch.rand(1, 3, 8, 8)]).eval()


def load(net, path: Path) -> None:
    """As ``tools`` read the weights of a quantized network."""
    state = checkpoints.select_params(checkpoints.read_file(path), path, None)
    checkpoints.load_state(copy.deepcopy(net), state, path)


def test_checkpoints(net, tmp_path):
    path = tmp_path / "damaged.pth"
    torch.save({"params": net.state_dict()}, path)
    refused = campaign(path.read_bytes(), path, lambda: load(net, path))
    assert refused > COUNT // 2


def changed(state: dict, draw: random.Random) -> tuple[dict, str]:
    """A state with another shape or name somewhere, and what was done."""
    state = dict(state)
    key = draw.choice(sorted(state))
    value = state.pop(key)
    kind = draw.choice(("dropped", "renamed", "prefixed", "longer", "flattened", "transposed", "not a tensor", "extra"))
    if kind == "renamed":
        state[key.replace(".", "_") + "_"] = value
    elif kind == "prefixed":
        state["x." + key] = value
    elif kind == "longer":
        state[key] = torch.cat((value.reshape(-1), value.reshape(-1)[:1]))
    elif kind == "flattened":
        state[key] = value.reshape(1, 1, -1) if value.ndim != 3 else value.flatten()
    elif kind == "transposed":
        state[key] = torch.zeros(*value.shape, 2)
    elif kind == "not a tensor":
        state[key] = draw.choice(("text", 1.5, [1, 2], None, {"a": 1}))
    elif kind == "extra":
        state |= {key: value, draw.choice(("extra", "layers.99.weight", f"{key}.scale")): torch.zeros(2)}
    return state, f"{key} {kind}"


def test_checkpoints_with_other_names_or_shapes_never_load(net, tmp_path):
    draw, path, good = random.Random(SEED), tmp_path / "changed.pth", net.state_dict()
    for _ in range(COUNT):
        state, done = changed(good, draw)
        torch.save({"params": state}, path)
        assert refusal(lambda: load(net, path), path) is not None, done


def test_full_precision_weights_with_other_names_or_shapes_never_load(net, tmp_path):
    draw, path = random.Random(SEED), tmp_path / "changed.pth"
    twin = build_network({"type": "MambaIR", **SIZES})
    for _ in range(COUNT // 4):
        state, done = changed(twin.state_dict(), draw)
        torch.save({"params": state}, path)
        assert refusal(lambda: load_full_precision(copy.deepcopy(net), path, None), path) is not None, done


def test_training_states(tmp_path):
    path = tmp_path / "8.state"
    torch.save({"epoch": 1, "iter": 8, "optimizers": [], "schedulers": [], "random": torch.rand(100)}, path)
    assert campaign(path.read_bytes(), path, lambda: checkpoints.load_training_state(path)) > COUNT // 2


def test_packed_files(net, tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors (extra: export)")
    from qmambair_basicsr.artifacts.packed import load_packed, save_packed

    path = tmp_path / "damaged.safetensors"
    save_packed(copy.deepcopy(net), NETWORK, path)
    content = path.read_bytes()
    assert refusal(lambda: load_packed(path), path) is None
    draw = random.Random(SEED)
    for _ in range(COUNT):
        path.write_bytes(damaged(content, draw))
        if path.read_bytes() != content:  # damage may cancel out
            assert refusal(lambda: load_packed(path), path) is not None


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])
def test_images(ending, tmp_path):
    path = tmp_path / f"damaged.{ending}"
    coarse = np.random.RandomState(0).randint(0, 256, (6, 9, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_CUBIC))
    content = path.read_bytes()
    assert read_image(path).shape == (64, 96, 3)
    refused = campaign(content, path, lambda: read_image(path))
    assert refused > COUNT // 10


def test_onnx_files(net, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra: export)")
    pytest.importorskip("onnxscript", reason="needs onnxscript (extra: export)")
    from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx
    from qmambair_basicsr.artifacts.onnx.runtime import OnnxNetwork

    path = tmp_path / "damaged.onnx"
    export_onnx(net, path, ExportSettings(8, 8, scan_chunk=4))
    content, x = path.read_bytes(), torch.rand(1, 3, 8, 8)

    def run() -> None:
        OnnxNetwork(path)(x)

    assert refusal(run, path) is None
    assert campaign(content, path, run, count=COUNT // 4) > COUNT // 16
