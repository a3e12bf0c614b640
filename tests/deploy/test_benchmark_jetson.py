"""deploy/benchmark_jetson.py without a Jetson: a mock runner and recorded board output."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tegrastats_lines import NO_RAILS, ORIN_NANO, ORIN_NX

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
jsonschema = pytest.importorskip("jsonschema", reason="checking the report needs jsonschema (extra: dev)")
import bench_report  # noqa: E402
import benchmark_jetson as bench  # noqa: E402
import board  # noqa: E402
import trt_runtime  # noqa: E402

SCHEMA = json.loads((ROOT / "deploy" / "benchmark.schema.json").read_text())


def test_percentiles():
    summary = bench_report.summarize(list(range(1, 101)))
    assert summary["mean"] == 50.5 and summary["p50"] == 50.5 and summary["p90"] == pytest.approx(90.1)
    assert summary["p99"] == pytest.approx(99.01) and (summary["min"], summary["max"]) == (1, 100)
    with pytest.raises(ValueError, match="no latency"):
        bench_report.summarize([])


class MockRunner:
    """A x2 network that takes as long as its file says, in made-up milliseconds."""

    calls: list[str] = []  # noqa: RUF012 (shared on purpose: the order of all runners)

    def __init__(self, engine, shape=None, cuda_graph=False, plugins=()):
        self.name, self.shape, self.version = engine.name, tuple(shape or (1, 3, 8, 8)), "10.3.0"
        self.milliseconds, self.memory_bytes = float(engine.read_text()), 64 << 20
        self.device, self.error = SimpleNamespace(name="mock"), 0.0 if "exact" in engine.name else 1e-3

    def infer(self, array):
        return np.repeat(np.repeat(array, 2, 2), 2, 3).astype(np.float32) + np.float32(self.error)

    def time(self, transfers):
        assert transfers
        MockRunner.calls.append(self.name)
        return trt_runtime.Timing(gpu=self.milliseconds, end_to_end=self.milliseconds + 0.5)


class MockMonitor:
    """One recorded line for every reading, at the time it is asked for."""

    reason = None

    def __init__(self, lines):
        self.lines = lines

    @property
    def samples(self):
        return [board.parse_tegrastats(line, time.monotonic()) for line in self.lines]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def engines(tmp_path):
    """Two engine files and a reference folder."""
    MockRunner.calls.clear()
    files = []
    for name, ms in (("exact.int8.plan", "10"), ("near.fp16.plan", "20")):
        file = tmp_path / name
        file.write_text(ms)
        files.append(file)
    (tmp_path / "exact.int8.json").write_text(
        json.dumps(
            {"model": {"onnx_sha256": "abc", "opset": 18, "bits_w": 4, "dls": "frozen"}, "build": {"int8_layers": 7}}
        )
    )
    refs = tmp_path / "refs"
    refs.mkdir()
    image = np.random.default_rng(1).random((1, 3, 8, 8), dtype=np.float32)
    np.savez(refs / "baby.npz", input=image, output=np.repeat(np.repeat(image, 2, 2), 2, 3))
    return files, refs


def report(args, lines=(ORIN_NANO,)):
    """Run the benchmark with mocks; returns (exit status, document)."""
    injected = {"make_runner": MockRunner, "open_monitor": lambda interval: MockMonitor(lines)}
    status = bench.main([*map(str, args), "--settle", "0"], **injected)
    output = Path(args[args.index("--output") + 1])
    file = output.with_name(output.name + ".json")
    return status, json.loads(file.read_text()) if file.exists() else None


def test_report_follows_the_schema(tmp_path, engines, capsys):
    files, refs = engines
    status, document = report(
        ["--engine", files[0], "--engine", files[1], "--reference", refs, "--iters", 11, "--rounds", 3, "--warmup", 2, "--output", tmp_path / "out"]
    )  # fmt: skip
    assert status == 0
    jsonschema.validate(document, SCHEMA)
    rows = {(r["model"]["name"], r["cuda_graph"]): r for r in document["results"]}
    assert len(rows) == 4, "two engines, CUDA graph off and on"
    row = rows["exact.int8", False]
    assert row["latency_ms"]["gpu"]["p50"] == 10 and row["latency_ms"]["end_to_end"]["p50"] == 10.5
    assert row["throughput_fps"] == pytest.approx(1000 / 10.5, rel=1e-4)
    assert row["power_w"] == pytest.approx(4.456) and row["energy_mj_per_frame"] == pytest.approx(
        4.456 * 10.5, rel=1e-4
    )
    assert row["accuracy"] == {"psnr_vs_onnx": None, "equal": True, "max_abs_err": 0.0, "images": ["baby"]}
    assert row["model"]["bits_w"] == 4 and row["model"]["bits_a"] is None, (
        "what the manifest says, None where it does not"
    )
    assert row["model"]["onnx_sha256"] == "abc" and row["build"]["int8_layers"] == 7
    assert rows["near.fp16", True]["accuracy"]["psnr_vs_onnx"] == pytest.approx(60, abs=0.1)
    table = (tmp_path / "out.md").read_text()
    assert table == capsys.readouterr().out
    for figure in ("198.21", "119.89", "120.87", "110.64", "119.74"):
        assert figure in table


def test_rounds_are_interleaved_and_rotate(tmp_path, engines):
    files, _ = engines
    report(
        ["--engine", files[0], "--engine", files[1], "--cuda-graph", "off", "--iters", 4, "--rounds", 2, "--warmup", 1, "--output", tmp_path / "o"]
    )  # fmt: skip
    a, b = "exact.int8.plan", "near.fp16.plan"
    assert MockRunner.calls == [a] * 3 + [b] * 3 + [b] * 3 + [a] * 3


def test_missing_rails_and_missing_references_are_said(tmp_path, engines):
    files, _ = engines
    status, document = report(
        ["--engine", files[0], "--iters", 2, "--rounds", 1, "--output", tmp_path / "o"], lines=(NO_RAILS,)
    )
    jsonschema.validate(document, SCHEMA)
    assert status == 0 and document["results"][0]["power_w"] is None and document["results"][0]["accuracy"] is None
    assert any("accuracy was not checked" in note for note in document["notes"])


def test_throttling_is_reported(tmp_path, engines):
    files, _ = engines
    lines = (ORIN_NX, ORIN_NX.replace("99%@[918]", "99%@[510]"))
    _, document = report(["--engine", files[0], "--iters", 2, "--rounds", 1, "--output", tmp_path / "o"], lines=lines)
    assert document["results"][0]["throttled"] is True
    assert "(throttled)" in (tmp_path / "o.md").read_text()
    _, document = report(
        ["--engine", files[0], "--iters", 2, "--rounds", 1, "--output", tmp_path / "p"], lines=(ORIN_NX, ORIN_NX)
    )
    assert document["results"][0]["throttled"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no engine", "no such file: --engine"),
        ("empty references", "holds no .npz"),
        ("broken reference", "is not a reference (arrays"),
        ("wrong output shape", "has output shape"),
    ],
)
def test_wrong_inputs(tmp_path, engines, capsys, change, message):
    files, refs = engines
    engine = files[0]
    if change == "no engine":
        engine = tmp_path / "gone.plan"
    elif change == "empty references":
        (refs / "baby.npz").unlink()
    elif change == "broken reference":
        (refs / "baby.npz").write_bytes(b"PK\x03\x04broken")
    else:
        np.savez(
            refs / "baby.npz", input=np.zeros((1, 3, 8, 8), np.float32), output=np.zeros((1, 3, 24, 24), np.float32)
        )
    status, document = report(["--engine", engine, "--reference", refs, "--output", tmp_path / "o"])
    assert status == 2 and document is None
    assert message in capsys.readouterr().err


def test_deploy_imports_nothing_of_the_package():
    for file in (ROOT / "deploy").glob("*.py"):
        lines = [line.strip() for line in file.read_text().splitlines()]
        assert not [line for line in lines if line.startswith(("import qmambair", "from qmambair"))], file
