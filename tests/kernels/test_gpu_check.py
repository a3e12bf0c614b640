"""kernels/bench/gpu_check.py: it runs, and it gives no figure for a kernel that computes something else."""

from __future__ import annotations

import json

import pytest
import torch

from qmambair_basicsr.ops.backend import Backend


@pytest.fixture
def gpu_check(script, monkeypatch):
    """The script as a module; its scans are left out here (the parity matrix of tests/ops runs them)."""
    usable, reason = Backend("lsq", "triton").is_available()
    if not usable:
        pytest.skip(reason)
    module = script("gpu_check")
    monkeypatch.setattr(module, "parity_rows", lambda bench: [])
    monkeypatch.setattr(module, "scan_rows", lambda bench, args: [])
    return module


def _run(module, tmp_path):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output = tmp_path / "check.json"
    sizes = ["--batch", "1", "--size", "3", "--channels", "5", "--repeats", "3"]
    code = module.main(["--device", device, *sizes, "--output", str(output)])
    return code, json.loads(output.read_text())["rows"]


def test_quantizers_pass_and_get_figures(gpu_check, tmp_path, capsys):
    code, rows = _run(gpu_check, tmp_path)
    assert code == 0, rows
    assert [row["op"] for row in rows] == ["dls", "lsq", "rfa"]
    assert all(row["forward"] > 0 and row["both"] > 0 and row["copy"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n| ") == 4


def test_failed_parity_gives_no_figure(gpu_check, tmp_path, capsys, monkeypatch):
    kernel = Backend("lsq", "triton").module
    forward = kernel.forward_items

    def wrong(items):
        outs, kept = forward(items)
        return [out * 1.001 for out in outs], kept

    monkeypatch.setattr(kernel, "forward_items", wrong)
    code, rows = _run(gpu_check, tmp_path)
    assert code == 1
    row = next(row for row in rows if row["op"] == "lsq")
    assert not row["passed"]
    assert row["forward"] is row["both"] is None
    assert "PARITY FAILED, no figures" in capsys.readouterr().out


def test_without_a_device_it_says_so(gpu_check, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
