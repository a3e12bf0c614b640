"""deploy/benchmark_jetson.py without a Jetson: mock runner, fake TensorRT and CUDA bindings, recorded board output."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
jsonschema = pytest.importorskip("jsonschema", reason="checking the report needs jsonschema (extra: dev)")
import bench_report  # noqa: E402
import benchmark_jetson as bench  # noqa: E402
import board  # noqa: E402
import trt_runtime  # noqa: E402

SCHEMA = json.loads((ROOT / "deploy" / "benchmark.schema.json").read_text())

ORIN_NANO = (
    "11-14-2024 10:03:35 RAM 2405/7620MB (lfb 3x4MB) SWAP 0/3810MB (cached 0MB) CPU [2%@729,1%@729,0%@729,off,off,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 97%@[624] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.5C soc2@47.4C soc0@47.5C "
    "gpu@49.6C tj@49.7C soc1@48.1C VDD_IN 4456mW/4400mW VDD_CPU_GPU_CV 520mW/520mW VDD_SOC 1401mW/1401mW"
)
ORIN_NX = (
    "RAM 3011/15523MB (lfb 2x4MB) SWAP 0/7761MB (cached 0MB) CPU [5%@1190,3%@1190,0%@729,0%@729] EMC_FREQ 2%@3199 "
    "GR3D_FREQ 99%@[918] CPU@51.2C CV0@-256C GPU@50C SOC2@49.8C tj@51.2C VDD_IN 11200mW VDD_CPU_GPU_CV 5000mW VDD_SOC 2500mW"
)
AGX_ORIN = (
    "RAM 5120/62841MB (lfb 1x2MB) SWAP 0/31420MB (cached 0MB) CPU [1%@2201,0%@2201] EMC_FREQ 0%@3199 GR3D_FREQ 99%@[1300,1300] "
    "VIC_FREQ 729 APE 174 CV0@-256.000C CPU@45.1C Tboard@36C SOC2@41.6C Tdiode@36.7C SOC0@42.1C CV1@-256C GPU@41.2C tj@45.1C "
    "SOC1@41.3C CV2@-256C VDD_GPU_SOC 8000mW/7800mW VDD_CPU_CV 1200mW/1100mW VIN_SYS_5V0 4800mW/4700mW NC 0mW/0mW VDDQ_VDD2_1V8AO 900mW/900mW"
)
NO_RAILS = "RAM 100/7620MB (lfb 3x4MB) CPU [2%@729] GR3D_FREQ 12% cpu@40C"


@pytest.mark.parametrize(
    ("line", "power", "temperature", "percent", "mhz", "ram"),
    [
        (ORIN_NANO, 4.456, 49.7, 97, 624, 2405),
        (ORIN_NX, 11.2, 51.2, 99, 918, 3011),
        (AGX_ORIN, 14.0, 45.1, 99, 1300, 5120),
        (NO_RAILS, None, 40.0, 12, None, 100),
        ("", None, None, None, None, None),
    ],
)
def test_tegrastats_of_every_module(line, power, temperature, percent, mhz, ram):
    sample = board.parse_tegrastats(line)
    assert sample.power_w == pytest.approx(power) if power is not None else sample.power_w is None
    assert (sample.temperature_c, sample.gpu_percent, sample.gpu_mhz, sample.ram_mb) == (temperature, percent, mhz, ram)
    assert all(c > -50 for c in sample.temperatures_c.values()), "a sensor that is off must not count"


def test_tegrastats_monitor_reads_and_stops(tmp_path):
    script = tmp_path / "tegrastats"
    script.write_text(f"#!/bin/sh\nwhile true; do echo '{ORIN_NANO}'; sleep 0.02; done\n")
    script.chmod(0o755)
    with board.TegrastatsMonitor(20, str(script)) as monitor:
        deadline = time.time() + 10
        while len(monitor.samples) < 3 and time.time() < deadline:
            time.sleep(0.02)
    assert len(monitor.samples) >= 3 and monitor.reason is None
    assert monitor.samples[0].power_w == pytest.approx(4.456)


def test_monitors_that_cannot_read_say_why(monkeypatch):
    with board.TegrastatsMonitor(command="no-such-tegrastats") as monitor:
        pass
    assert "not found" in monitor.reason
    monkeypatch.setitem(sys.modules, "jtop", None)
    with board.JtopMonitor() as monitor:
        pass
    assert "jtop" in monitor.reason


def test_jtop_is_read(monkeypatch):
    class Jtop:
        def __init__(self, interval):
            self.power = {"rail": {"VDD_SOC": {"power": 900}}, "tot": {"power": 5200}}
            self.temperature = {"tj": {"temp": 44.5, "online": True}, "cv0": {"temp": -256, "online": False}}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def ok(self):
            time.sleep(0.01)
            return True

    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=Jtop))
    with board.JtopMonitor(10) as monitor:
        deadline = time.time() + 10
        while not monitor.samples and time.time() < deadline:
            time.sleep(0.01)
    assert monitor.samples[0].power_w == pytest.approx(5.2) and monitor.samples[0].temperature_c == 44.5


def test_board_state(monkeypatch):
    texts = {
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        "/proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    }
    monkeypatch.setattr(board, "read_text", texts.get)
    outputs = {"nvpmodel": "25W", "jetson_clocks": "GPU MinFreq=918000000 MaxFreq=918000000 CurrentFreq=918000000"}
    monkeypatch.setattr(board, "first_line", lambda command, pattern="": outputs.get(command[0]))
    state = board.board_state()
    assert state["l4t"] == "36.4.3" and state["power_mode"] == "25W" and state["clocks_locked"] is True
    assert state["jetpack"] is None, "what the board does not tell stays None"
    assert board.clocks_locked("GPU MinFreq=306000000 MaxFreq=918000000") is False


def test_throttle_alerts(tmp_path):
    assert board.throttle_alerts(str(tmp_path)) is None
    for i, (kind, state) in enumerate((("pwm-fan", "3"), ("gpu-throttle-alert", "0"), ("cpu-throttle-alert", "0"))):
        device = tmp_path / f"cooling_device{i}"
        device.mkdir()
        (device / "type").write_text(kind)
        (device / "cur_state").write_text(state)
    assert board.throttle_alerts(str(tmp_path)) is False
    (tmp_path / "cooling_device1" / "cur_state").write_text("1")
    assert board.throttle_alerts(str(tmp_path)) is True


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
        json.dumps({"model": {"onnx_sha256": "abc", "opset": 18}, "build": {"int8_layers": 7}})
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
        ("broken reference", "is not a reference of"),
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


# --- the TensorRT runner against fake bindings -------------------------------------------------------------------


class FakeCuda:
    """pycuda.driver on host memory: addresses are of ctypes buffers, work is done at once."""

    def __init__(self):
        self.log = []
        self.Event, self.Stream = self._event, self._stream

    def init(self):
        self.log.append("init")

    def Device(self, index):
        context = SimpleNamespace(push=lambda: None, pop=lambda: None)
        return SimpleNamespace(retain_primary_context=lambda: context)

    def mem_alloc(self, nbytes):
        buffer = ctypes.create_string_buffer(nbytes)

        class Allocation:
            def __int__(self):
                return ctypes.addressof(buffer)

        return Allocation()

    def pagelocked_empty(self, shape, dtype):
        return np.full(shape, np.nan, dtype)

    def memcpy_htod_async(self, target, array, stream):
        self.log.append("upload")
        ctypes.memmove(int(target), array.ctypes.data, array.nbytes)

    def memcpy_dtoh_async(self, array, source, stream):
        self.log.append("download")
        ctypes.memmove(array.ctypes.data, int(source), array.nbytes)

    def mem_get_info(self):
        return 1 << 30, 2 << 30

    def _stream(self):
        return SimpleNamespace(handle=7, synchronize=lambda: self.log.append("wait"))

    def _event(self):
        event = SimpleNamespace(record=lambda stream: self.log.append("event"), synchronize=lambda: None)
        event.time_till = lambda end: 1.25
        return event


def fake_tensorrt(log, dynamic=True, loads=True, accepts=True):
    """A tensorrt module whose engine doubles height and width by repetition."""
    shape = {"input": (1, 3, -1, -1) if dynamic else (1, 3, 6, 5)}
    address = {}

    class Context:
        def set_input_shape(self, name, given):
            shape[name] = tuple(given)
            return accepts

        def get_tensor_shape(self, name):
            n, c, h, w = shape["input"]
            return (n, c, 2 * h, 2 * w)

        def set_tensor_address(self, name, pointer):
            address[name] = pointer

        def execute_async_v3(self, handle):
            log.append("execute")
            n, c, h, w = shape["input"]
            source = np.frombuffer((ctypes.c_float * (n * c * h * w)).from_address(address["input"]), np.float32)
            out = np.repeat(np.repeat(source.reshape(n, c, h, w), 2, 2), 2, 3)
            ctypes.memmove(address["output"], out.ctypes.data, out.nbytes)
            return True

    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda i: ("input", "output")[i],
        get_tensor_mode=lambda n: n,
        get_tensor_shape=lambda n: shape[n],
        get_tensor_dtype=lambda n: "float",
        create_execution_context=Context,
    )
    module = types.ModuleType("tensorrt")
    module.__version__ = "10.3.0"
    module.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
    module.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: engine if loads else None)
    module.TensorIOMode = SimpleNamespace(INPUT="input")
    module.nptype = lambda kind: np.float32
    module.init_libnvinfer_plugins = lambda logger, namespace: True
    return module


@pytest.fixture
def bindings(monkeypatch):
    """Install the fakes; returns a function that installs a TensorRT variant and the call log."""
    cuda = FakeCuda()
    package = types.ModuleType("pycuda")
    package.driver = cuda
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", cuda)

    def install(**variant):
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(cuda.log, **variant))
        return cuda.log

    return install


def test_runner_runs_an_engine(tmp_path, bindings):
    log = bindings()
    (tmp_path / "e.plan").write_bytes(b"plan")
    runner = trt_runtime.EngineRunner(tmp_path / "e.plan", shape=(1, 3, 6, 5))
    image = np.random.default_rng(0).random((1, 3, 6, 5), dtype=np.float32)
    output = runner.infer(image)
    assert np.array_equal(output, np.repeat(np.repeat(image, 2, 2), 2, 3))
    log.clear()
    timing = runner.time(transfers=True)
    assert log == ["upload", "event", "execute", "event", "download", "wait"], "events enclose the inference alone"
    assert timing.gpu == 1.25 and timing.end_to_end > 0
    log.clear()
    runner.time(transfers=False)
    assert log == ["event", "execute", "event", "wait"]


@pytest.mark.parametrize(
    ("variant", "shape", "message"),
    [
        ({"loads": False}, (1, 3, 6, 5), "a plan runs only on the TensorRT version"),
        ({}, None, "give --shape"),
        ({"accepts": False}, (1, 3, 6, 5), "does not accept the input shape 1x3x6x5"),
    ],
)
def test_runner_refusals(tmp_path, bindings, variant, shape, message):
    bindings(**variant)
    (tmp_path / "e.plan").write_bytes(b"plan")
    with pytest.raises(trt_runtime.RuntimeUnavailable, match=message):
        trt_runtime.EngineRunner(tmp_path / "e.plan", shape=shape)


def test_missing_bindings_are_named(tmp_path, monkeypatch):
    (tmp_path / "e.plan").write_bytes(b"plan")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(trt_runtime.RuntimeUnavailable, match="'tensorrt' cannot be imported"):
        trt_runtime.EngineRunner(tmp_path / "e.plan")
    for module in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(trt_runtime.RuntimeUnavailable, match="neither pycuda nor cuda-python"):
        trt_runtime.open_device()


FAKE_LIBCUDA = """
#include <stdint.h>
static int calls[4];
int cuStreamBeginCapture_v2(void *s, int mode) { calls[0]++; return s == (void *)7 ? 0 : 1; }
int cuStreamEndCapture(void *s, void **g) { calls[1]++; *g = (void *)11; return 0; }
int cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) { calls[2]++; *e = (void *)13; return g == (void *)11 ? 0 : 1; }
int cuGraphLaunch(void *e, void *s) { calls[3]++; return e == (void *)13 ? 0 : 700; }
int calls_of(int i) { return calls[i]; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build a stand-in for the CUDA driver")
def test_cuda_graph_captures_once_and_replays(tmp_path):
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text(FAKE_LIBCUDA)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    issued = []
    graph = trt_runtime.CudaGraph(lambda: issued.append(1), SimpleNamespace(handle=7), str(library))
    graph.launch()
    graph.launch()
    counts = [ctypes.CDLL(str(library)).calls_of(i) for i in range(4)]
    assert issued == [1] and counts == [1, 1, 1, 2]
    with pytest.raises(trt_runtime.RuntimeUnavailable, match="cuStreamBeginCapture_v2 failed with CUresult 1"):
        trt_runtime.CudaGraph(lambda: None, SimpleNamespace(handle=8), str(library))


def test_deploy_imports_nothing_of_the_package():
    for file in (ROOT / "deploy").glob("*.py"):
        lines = [line.strip() for line in file.read_text().splitlines()]
        assert not [line for line in lines if line.startswith(("import qmambair", "from qmambair"))], file
