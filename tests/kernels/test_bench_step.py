"""kernels/bench/bench_step.py: its figures of a step beside the arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from qmambair_basicsr.ops.backend import choose
from qmambair_basicsr.quantizers import DLS, LSQOffset

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
SMALL = {"upscale": 2, "embed_dim": 30, "d_state": 2, "depths": (1,), "mlp_ratio": 1.2}


@pytest.fixture
def bench_step(monkeypatch, script):
    monkeypatch.syspath_prepend(str(BENCH))
    module = script("bench_step")
    monkeypatch.setattr(module, "LIGHT", {**SMALL, "upsampler": "pixelshuffledirect"})
    return module


def test_the_overhead_is_that_of_both_kinds_of_kernels(bench_step, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "--overhead", "--rounds", "1"])
    monkeypatch.setattr(sys.modules["no_launches"]._Nothing, "__call__", lambda *_, **__: ran.append(1))
    threads = torch.get_num_threads()
    try:
        bench_step.main()
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert out.count("ratio") == 2 and "launches left out" in out
    assert ran  # kernels of a GPU were asked for


def test_inside_no_launches_the_quantizers_take_tritons_way_and_afterwards_their_own(bench_step):
    before = choose("lsq", ("native", "triton", "reference"), torch.zeros(1))
    x = torch.rand(2, 4, 4, 3, requires_grad=True)
    with bench_step.no_launches():
        for kind in (LSQOffset, DLS):
            quantizer = kind(4).train()
            quantizer.initialized.fill_(True)
            quantizer(x).sum().backward()
        assert choose("lsq", ("native", "triton", "reference"), x).__name__.endswith("lsq.triton")
    assert choose("lsq", ("native", "triton", "reference"), torch.zeros(1)) is before
