"""deploy/trt_runtime.py with stand-ins for TensorRT, pycuda and the CUDA driver."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
import trt_runtime  # noqa: E402


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
