"""kernels/bench/gpu_report.py: it runs where there is no GPU, and says what it did not measure."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"


@pytest.fixture
def gpu_report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("gpu_report")
    monkeypatch.setattr(module, "LIGHT", {**module.LIGHT, "embed_dim": 30, "depths": (1,), "d_state": 2})
    return module


def test_steps_are_timed_and_compared(gpu_report, tmp_path, capsys):
    output = tmp_path / "report.json"
    small = ["--sizes", "1", "8", "--image", "8", "--repeats", "1", "--no-kernels", "--output", str(output)]
    assert gpu_report.main(["--device", "cpu", *small]) == 0
    rows = json.loads(output.read_text())["steps"]
    assert [(r["what"], r["network"], r["mode"]) for r in rows] == [
        ("training step", "FP", "eager"),
        ("training step", "FP", "graph"),
        ("training step", "w4a4", "eager"),
        ("training step", "w4a4", "graph"),
        ("image restored", "FP", "eager"),
        ("image restored", "w4a4", "eager"),
    ]
    assert all(r["ms"] > 0 for r in rows if r["mode"] == "eager")
    assert all(r["calls"] > 0 for r in rows if r["what"] == "training step" and r["mode"] == "eager")
    assert capsys.readouterr().out.count("not measured: no CUDA graphs") == 2


def test_what_there_is_no_time_for_is_listed(gpu_report):
    rows = list(gpu_report.steps("cpu", ((1, 8),), 1, until=-1.0))
    assert [r.reason for r in rows] == ["no time left"] * 4


def test_without_a_device_it_says_so(gpu_report, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
