"""tools.run_onnx restores, measures and writes references."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from qmambair_basicsr.artifacts.run_onnx import time_in_turns
from qmambair_basicsr.inference.image_sets import load_samples, psnr_of
from qmambair_basicsr.tools import run_onnx as tool

pytest.importorskip("onnxruntime", reason="extra: export")


def test_images_are_restored_in_tiles(exported, tmp_path, capsys):
    from qmambair_basicsr.artifacts.onnx.runtime import OnnxNetwork
    from qmambair_basicsr.artifacts.restoring import restore

    command = ["--model", exported["frozen.onnx"], "--images", exported["inputs"], "--truth", exported["truth"]]
    assert (
        tool.main([*command, "--save", str(tmp_path / "out"), "--output", str(tmp_path / "r"), "--overlap", "4"]) == 0
    )
    restored = json.loads((tmp_path / "r.json").read_text())["restored"]
    assert restored["tiles"] == [16, 24] and len(restored["images"]) == 3
    network = OnnxNetwork(exported["frozen.onnx"])
    samples = load_samples(exported["inputs"], exported["truth"], 3, 2)
    for sample, row in zip(samples, restored["images"], strict=True):
        saved = cv2.imread(str(tmp_path / "out" / f"{sample.name}.png"))
        assert saved.shape == (40, 60, 3)
        whole = restore(network, sample.image, (16, 24), overlap=4)
        assert row["psnr"] == pytest.approx(psnr_of(whole, sample.truth, 2, True), abs=1e-6)
        assert np.abs(whole[0].clamp(0, 1).permute(1, 2, 0).numpy()[..., ::-1] * 255 - saved).max() <= 0.5001
    assert restored["psnr"] == pytest.approx(np.mean([row["psnr"] for row in restored["images"]]))
    assert f"Mean PSNR {restored['psnr']:.3f} dB (Y, border 2)" in capsys.readouterr().out


def test_networks_are_timed_in_turns_and_a_reference_is_written(exported, tmp_path):
    reference = tmp_path / "refs" / "p0.npz"
    command = ["--model", exported["frozen.onnx"], "--model", exported["dynamic.onnx"], "--images", exported["inputs"]]
    command += ["-opt", exported["net.yml"], "--checkpoint", exported["net.pth"], "--rounds", "2", "--count", "1"]
    command += ["--threads", str(torch.get_num_threads())]
    assert tool.main([*command, "--save-reference", str(reference), "--output", str(tmp_path / "r")]) == 0
    timing = json.loads((tmp_path / "r.json").read_text())["timing"]
    rows = timing["rows"]
    assert timing["input"] == [1, 3, 16, 24] and len(rows) == 3 and rows[2]["name"].startswith("PyTorch")
    assert rows[0]["ratio"] == 1 and all(0 < r["min_ms"] <= r["median_ms"] <= r["max_ms"] for r in rows)
    assert rows[1]["ratio"] == pytest.approx(rows[1]["median_ms"] / rows[0]["median_ms"], rel=1e-2)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy"))
    from benchmark_jetson import load_references

    ((name, array, output),) = load_references(reference.parent)
    assert name == "p0" and array.shape == (1, 3, 16, 24) and output.shape == (1, 3, 32, 48)


def test_turns_rotate():
    calls = []
    rows = time_in_turns({n: lambda x, n=n: calls.append(n) for n in "abc"}, torch.zeros(1), 3)
    assert calls == [*"abc", *"abc", *"bca", *"cab"]
    assert [row["name"] for row in rows] == [*"abc"]


@pytest.mark.parametrize("name", ["images", "truth"])
def test_results_do_not_overwrite_inputs(tmp_path, capsys, name):
    """Said before any file is opened."""
    folders = {"images": tmp_path / "a", "truth": tmp_path / "b"}
    argv = [f"--{n}={f}" for n, f in folders.items()]
    assert tool.main(["--model", "none.onnx", *argv, "--save", str(folders[name] / ".")]) == 2
    assert f"is the folder of --{name}, whose images would be overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--checkpoint", "net.pth"], "--checkpoint is for timing"),
        (["--save-reference", "a.txt"], "must end in .npz"),
    ],
)
def test_mistakes_are_said(exported, capsys, extra, message):
    assert tool.main(["--model", exported["frozen.onnx"], "--images", exported["inputs"], "--count", "1", *extra]) == 2
    assert message in capsys.readouterr().err


def test_plugin_graphs_are_refused(exported, tmp_path, capsys):
    import onnx

    model = onnx.load(exported["frozen.onnx"])
    next(n for n in model.graph.node if n.op_type == "Scan").domain = "qmambair"
    onnx.save(model, tmp_path / "plugin.onnx")
    assert tool.main(["--model", str(tmp_path / "plugin.onnx"), "--images", exported["inputs"]]) == 2
    assert "export with --scan onnx" in capsys.readouterr().err
