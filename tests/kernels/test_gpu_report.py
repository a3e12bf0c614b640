"""kernels/bench/gpu_report.py: it runs where there is no GPU, and says what it did not measure."""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
SMALL = {"depths": (1,), "d_state": 2}


@pytest.fixture
def gpu_report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("gpu_report")
    monkeypatch.setattr(module.gpu_steps, "LIGHT", {**module.gpu_steps.LIGHT, **SMALL, "embed_dim": 30})
    v2 = {"num_heads": (2,), "embed_dim": 24, "window_size": 4, "inner_rank": 4, "num_tokens": 8}
    monkeypatch.setattr(module.gpu_steps, "LIGHT_V2", {**module.gpu_steps.LIGHT_V2, **SMALL, **v2})
    return module


def small(tmp_path, *more: str) -> list[str]:
    output = str(tmp_path / "report.json")
    given = ["--device", "cpu", "--sizes", "1", "8", "--image", "12", "16", "--repeats", "1", "--output", output]
    return [*given, *more]


def test_steps_and_images_are_timed_and_compared(gpu_report, tmp_path, capsys):
    assert gpu_report.main(small(tmp_path, "--only", "steps,kernels,images")) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert [(r["family"], r["network"], r["mode"]) for r in found["steps"]] == [
        (family, network, mode)
        for family in ("MambaIR", "MambaIRv2")
        for network in ("FP", "w4a4")
        for mode in ("eager", "graph")
    ]
    assert all(r["ms"] > 0 for r in found["steps"] if r["mode"] == "eager")
    assert all(r["calls"] > 0 for r in found["steps"] if r["mode"] == "eager")
    assert [r["ms"] > 0 for r in found["images"]] == [True] * 4
    text = (tmp_path / "report.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert text.count("not measured: no CUDA graphs") == 5
    assert "parity" not in found


def test_a_table_shows_the_ratios(gpu_report):
    steps = gpu_report.gpu_steps
    times = {("FP", "eager"): 100.0, ("FP", "graph"): 40.0, ("w4a4", "eager"): 250.0, ("w4a4", "graph"): 50.0}
    rows = [steps.Step("step", "MambaIR", n, 8, 64, 64, m, ms, 1000.0) for (n, m), ms in times.items()]
    line = steps.table(rows).splitlines()[-1]
    assert "| 250.0 | 50.0 | 5.00 | 2.50 | 1.25 | 1000 | 1000 |" in line


def test_what_there_is_no_time_for_is_listed(gpu_report, tmp_path):
    rows = list(gpu_report.gpu_steps.steps("cpu", ["MambaIR"], ((1, 8),), 1, until=-1.0))
    assert [r.reason for r in rows] == ["no time left"] * 4
    assert gpu_report.main(small(tmp_path, "--seconds", "0", "--only", "scan,suite")) == 0
    assert (tmp_path / "report.md").read_text().count("no time left") == 2


def test_chosen_sections_share_the_whole_time(gpu_report):
    given = ["--seconds", "90", "--only"]
    for only, seconds in (("steps", {"steps": 90}), ("steps,scan", {"steps": 72, "scan": 90})):
        report = gpu_report.Report(gpu_report.arguments([*given, only]))
        assert {name: round(report.until(name) - report.start) for name in seconds} == seconds


def test_a_section_that_fails_is_written_down_and_the_next_one_runs(gpu_report, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_report.gpu_steps, "steps", fails)
    assert gpu_report.main(small(tmp_path, "--only", "steps,images", "--families", "MambaIR")) == 1
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["steps"] == "RuntimeError: no such kernel"
    assert len(found["images"]) == 2


def test_operators_and_memory(gpu_report, tmp_path, monkeypatch):
    """Attention by torch is compared with the definition; one way of saving memory that fails leaves the others."""
    monkeypatch.setattr(gpu_report.gpu_kernels, "WINDOW", 4)
    monkeypatch.setattr(gpu_report.gpu_kernels, "DEPTHWISE", ((3, 3),))
    monkeypatch.setattr(gpu_report.gpu_check, "available", lambda *_: False)

    def fails(net):
        raise ValueError("no blocks")

    monkeypatch.setattr(gpu_report.gpu_kernels, "recompute_blocks", fails)
    assert gpu_report.main(small(tmp_path, "--only", "operators,memory", "--families", "MambaIRv2")) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    attention, *convolutions = found["operators"]
    assert (
        attention["backend"] == "scaled_dot_product_attention" and attention["both"] > 0 and attention["error"] < 1e-5
    )
    assert attention["graph"] is None and len(convolutions) == 4
    kept, again, recomputed = found["memory"]
    assert kept["ms"] > 0 and again["ms"] > 0 and recomputed["reason"] == "ValueError: no blocks"
    assert "w4a4, requantize" in (tmp_path / "report.md").read_text()


def test_a_call_is_replayed_from_a_recording_where_there_are_any(gpu_report, monkeypatch):
    check = gpu_report.gpu_check

    class Recorder:
        def __init__(self, device):
            self.warm_up = contextlib.nullcontext

        def record(self, computation):
            computation()
            self.replay = computation

    bench = check.Bench("cpu", 1)
    assert bench.replayed(lambda: None) is None
    bench.cuda = True
    monkeypatch.setattr(check, "CudaGraph", Recorder)
    monkeypatch.setattr(bench, "time", lambda function: function() or 2.0)
    assert bench.replayed(lambda: torch.ones(1)) == 2.0 and bench.kept == []

    def cannot(self, computation):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Recorder, "record", cannot)
    assert bench.replayed(lambda: torch.ones(1)) is None


def test_a_kernel_that_computes_something_else_fails_the_report(gpu_report, tmp_path, monkeypatch):
    row = gpu_report.gpu_check.Row("ss2d_scan", "triton", "8 x 64 x 64", 1.0, False)
    monkeypatch.setattr(gpu_report.gpu_check, "scan_rows", lambda *_: [row])
    assert gpu_report.main(small(tmp_path, "--only", "scan", "--channels", "72")) == 1
    assert "PARITY FAILED" in (tmp_path / "report.md").read_text()


def test_without_a_device_or_with_an_unknown_section_it_says_so(gpu_report, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_report.main(["--only", "speed"])
    assert "no section speed" in capsys.readouterr().err
