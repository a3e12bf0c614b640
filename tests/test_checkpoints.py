"""Files are read without running code, written atomically, and every kind of damage gives one clear error."""

from __future__ import annotations

import errno
import logging
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from torch import nn

from qmambair_basicsr import checkpoints as io
from qmambair_basicsr.calibration import calibrate


class RunsCode:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def net():
    return nn.Linear(3, 2)


def test_round_trip(tmp_path, net):
    path = tmp_path / "net.pth"
    io.write_file({"params": net.state_dict(), "params_ema": net.state_dict()}, path)
    other = nn.Linear(3, 2)
    assert io.load_state(other, io.select_params(io.read_file(path), path, "params_ema"), path) == []
    assert torch.equal(other.weight, net.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_not_run(tmp_path, legacy):
    path, mark = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"params": {"w": RunsCode(mark)}}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(io.UnsafeCheckpointError, match=r"evil\.pth is refused.*could run") as error:
        io.read_file(path)
    assert "mkdir" in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"psnr": np.float64(3.0)}], ids=["module", "numpy scalar"])
def test_objects_are_refused_by_name(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(io.UnsafeCheckpointError, match=r"refers to (torch\.nn\.modules\.linear\.Linear|numpy)"):
        io.read_file(tmp_path / "net.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_plain_pickle_with_code_is_not_run(tmp_path):
    path, mark = tmp_path / "evil.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(RunsCode(mark)))
    with pytest.raises(io.CheckpointError, match=r"evil\.pth"):
        io.read_file(path)
    assert not mark.exists()


def damaged(tmp_path, net, kind):
    path = tmp_path / "net.pth"
    io.write_file({"params": net.state_dict()}, path)
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "one byte": whole[:1],
        "no directory": whole[:-30],
        "text": b"404: Not Found\n",
        "zeros": bytes(1000),
        "flipped": whole[:40] + bytes(b ^ 255 for b in whole[40:200]) + whole[200:],
    }[kind]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["empty", "truncated", "one byte", "no directory", "text", "zeros", "flipped"])
def test_damage_is_one_clear_error(tmp_path, net, kind):
    path = damaged(tmp_path, net, kind)
    with pytest.raises(io.CheckpointError, match=r"net\.pth") as error:
        io.read_file(path)
    assert "another copy" in str(error.value)


@pytest.mark.parametrize("name", ["photo.tif", "net.onnx"])
def test_files_of_another_kind_are_not_called_broken(tmp_path, name):
    (tmp_path / name).write_bytes(b"of another kind")
    with pytest.raises(io.CheckpointError, match=r"name a \.pth or \.safetensors file") as caught:
        io.read_file(tmp_path / name)
    assert "Delete" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(io.CheckpointError, match="does not exist"):
        io.read_file(tmp_path / "none.pth")
    with pytest.raises(io.CheckpointError, match="is a folder"):
        io.read_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        ({"params": {"w": torch.zeros(1)}}, "params_ema", r"no 'params_ema'.*it holds: params; set"),
        ({"w": torch.zeros(1)}, "params", "bare state_dict.*param_key_g: ~"),
        ({"params": {}}, "params", "empty"),
        ({"params": {"w": 3}}, "params", "'w' is a int"),
        ({"params": {"w": torch.zeros(1)}}, None, "'params' is a dict, not a tensor"),
        ([1, 2], "params", "holds a list"),
    ],
)
def test_wrong_content_is_explained(content, key, words):
    with pytest.raises(io.CheckpointError, match=words):
        io.select_params(content, "x.pth", key)


def test_ddp_prefix_is_dropped():
    assert list(io.select_params({"params": {"module.w": torch.zeros(1)}}, "x.pth", "params")) == ["w"]


def test_every_mismatch_is_listed(net):
    state = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(io.CheckpointMismatchError) as error:
        io.load_state(net, state, "x.pth")
    for part in ("x.pth", "weight: network (2, 3), file (2, 4)", "bias", "extra"):
        assert part in str(error.value)


def test_not_strict_skips_keys_but_never_shapes(net):
    weight = torch.ones(2, 3)
    skipped = io.load_state(net, {"weight": weight, "extra": torch.zeros(1)}, "x.pth", strict=False)
    assert skipped == ["not in the file: bias", "not in the network: extra"]
    assert torch.equal(net.weight, weight)
    with pytest.raises(io.CheckpointMismatchError, match="never ignored"):
        io.load_state(net, {"weight": torch.zeros(2, 4)}, "x.pth", strict=False)


@pytest.mark.parametrize("failing", ["write", "rename"])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "net.pth"
    io.write_file({"step": 1}, path)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io.os, "fsync" if failing == "write" else "replace", fail)
    with pytest.raises(io.CheckpointError, match=r"cannot write .*net\.pth.*No space left.*intact"):
        io.write_file({"step": 2}, path)
    assert io.read_file(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_really_full_device():
    with pytest.raises(io.CheckpointError, match="No space left"):
        io.write_file({"w": torch.zeros(100_000)}, "/dev/full")


def test_training_state(tmp_path):
    path = tmp_path / "5.state"
    state = {"epoch": 1, "iter": 5, "optimizers": [], "schedulers": [{"milestones": Counter([3, 4])}]}
    torch.save(state, path)
    assert io.load_training_state(path) == state
    io.write_file({"params": {}}, path)
    with pytest.raises(io.CheckpointError, match=r"lacks epoch, iter.*pretrain_network_g"):
        io.load_training_state(path)


def test_first_non_finite():
    good = {"a": torch.ones(2), "n": torch.tensor(3)}
    assert io.first_non_finite(good) is None
    assert io.first_non_finite(good | {"b": torch.tensor([1.0, float("inf")])}) == "b"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "net_g.", "net_g._orig_mod.", ""])
def test_prefixes_of_wrappers_are_taken_off_and_said(tmp_path, net, prefix, caplog):
    path = tmp_path / "net.pth"
    torch.save({"params": {prefix + key: value for key, value in net.state_dict().items()}}, path)
    other = nn.Linear(3, 2)
    with caplog.at_level("WARNING", logger="basicsr"):
        logger = logging.getLogger("basicsr")
        logger.addHandler(caplog.handler)
        try:
            io.load_state(other, io.select_params(io.read_file(path), path, "params"), path)
        finally:
            logger.removeHandler(caplog.handler)
    assert torch.equal(other.weight, net.weight)
    assert ("net.pth: the prefix" in caplog.text) == (prefix not in ("", "module."))


def test_prefixes_inside_names_and_of_some_keys_only(tmp_path, net):
    state = net.state_dict()
    inner = {"0._orig_mod." + key: value for key, value in state.items()}
    assert set(io.select_params(inner, "net.pth", None)) == {"0.weight", "0.bias"}
    some = {"net_g.weight": state["weight"], "bias": state["bias"]}
    assert set(io.select_params(some, "net.pth", None)) == set(some)
    with pytest.raises(io.CheckpointError, match=r"net\.pth holds 'weight' twice"):
        io.select_params({"weight": state["weight"], "_orig_mod.weight": state["weight"]}, "net.pth", None)


def test_safetensors_files_are_state_dicts_and_packed_ones_are_named(tmp_path, net):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors (extra: export)")
    path = tmp_path / "net.safetensors"
    safetensors.save_file(net.state_dict(), str(path))
    assert torch.equal(io.select_params(io.read_file(path), path, None)["weight"], net.weight)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(io.CheckpointError, match=r"net\.safetensors cannot be read"):
        io.read_file(path)
    packed = Path(__file__).parent / "data" / "artifacts" / "packed_version1.safetensors"
    with pytest.raises(
        io.CheckpointError, match=r"packed_version1\.safetensors is a packed checkpoint.*\.pth it was made"
    ):
        io.read_file(packed)


def test_a_value_for_the_tensor_is_taken_for_each_channel(caplog):
    coarse = {"weight": {"type": "RFA", "bits": 4}, "act": {"type": "LSQOffset", "bits": 4}}
    fine = {"weight": {"type": "RFA", "bits": 4, "granularity": "channel"}}
    fine["act"] = {"type": "LSQOffset", "bits": 4, "offsets": "channel"}
    options = {"embed_dim": 30, "depths": [1], "d_state": 2, "upscale": 2, "upsampler": "pixelshuffledirect"}
    scan = {"scan": {"type": "DLS", "bits": 4, "init": {"search": "none"}}}
    torch.manual_seed(0)
    old = build_network({"type": "QMambaIR", **options, "quant": coarse | scan}).eval()
    calibrate(old, [torch.rand(1, 3, 8, 8)])
    new = build_network({"type": "QMambaIR", **options, "quant": fine | scan}).eval()
    logger = logging.getLogger("basicsr")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level("INFO", logger="basicsr"):
            io.load_state(new, old.state_dict(), "old.pth")
    finally:
        logger.removeHandler(caplog.handler)
    assert "old.pth" in caplog.text and "for each of its channels" in caplog.text
    steps = [value for key, value in new.state_dict().items() if key.endswith("weight_quantizer.scale")]
    assert max(map(torch.numel, steps)) > 1
    x = torch.rand(1, 3, 16, 8)
    with torch.no_grad():
        torch.testing.assert_close(new(x), old(x))
    # the way back would lose what the channels learned
    with pytest.raises(io.CheckpointError, match="of another shape"):
        io.load_state(old, new.state_dict(), "new.pth")
