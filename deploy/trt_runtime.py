"""Runs a TensorRT engine with pycuda, or with cuda-python where pycuda is not installed.

Both are hidden behind one small device interface, so that the runner, the timing and CUDA graphs are written once.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class RuntimeUnavailable(Exception):
    """TensorRT or a CUDA binding is missing, or the engine does not load; the message says which and what to do."""


class PycudaDevice:
    """CUDA through pycuda."""

    name = "pycuda"

    def __init__(self):
        import pycuda.driver as driver

        self.driver = driver
        driver.init()
        self.context = driver.Device(0).retain_primary_context()
        self.context.push()

    def alloc(self, nbytes: int):
        """Device memory; keep the returned object alive. ``int()`` of it is the address."""
        return self.driver.mem_alloc(nbytes)

    def pinned(self, shape, dtype) -> np.ndarray:
        """Page-locked host array."""
        return self.driver.pagelocked_empty(tuple(shape), dtype)

    def stream(self):
        """A stream with an int ``handle``."""
        return self.driver.Stream()

    def upload(self, target, array: np.ndarray, stream) -> None:
        """Host to device, in stream order."""
        self.driver.memcpy_htod_async(target, array, stream)

    def download(self, array: np.ndarray, source, stream) -> None:
        """Device to host, in stream order."""
        self.driver.memcpy_dtoh_async(array, source, stream)

    def event(self):
        """An event that can be timed."""
        return self.driver.Event()

    def record(self, event, stream) -> None:
        """Mark this point of the stream."""
        event.record(stream)

    def elapsed_ms(self, start, end) -> float:
        """Milliseconds between two events; waits for the second."""
        end.synchronize()
        return start.time_till(end)

    def synchronize(self, stream) -> None:
        """Wait until the stream is done."""
        stream.synchronize()

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        return self.driver.mem_get_info()

    def close(self) -> None:
        """Give the context back."""
        self.context.pop()


class _Handle:
    """A raw CUDA handle or address that converts to int."""

    def __init__(self, value):
        self.handle = int(value)

    def __int__(self) -> int:
        return self.handle


class CudaPythonDevice:
    """CUDA through cuda-python (``cuda.bindings.runtime``, formerly ``cuda.cudart``)."""

    name = "cuda-python"

    def __init__(self):
        try:
            from cuda.bindings import runtime
        except ImportError:
            from cuda import cudart as runtime
        self.runtime = runtime
        self.call("cudaSetDevice", 0)

    def call(self, function: str, *args):
        """Call the runtime; raise with the function's name on an error."""
        status, *values = getattr(self.runtime, function)(*args)
        if int(status) != 0:
            raise RuntimeUnavailable(f"{function} failed: {status}")
        return values[0] if len(values) == 1 else values

    def alloc(self, nbytes: int):
        """See PycudaDevice."""
        return _Handle(self.call("cudaMalloc", nbytes))

    def pinned(self, shape, dtype) -> np.ndarray:
        """See PycudaDevice."""
        dtype, count = np.dtype(dtype), int(np.prod(shape))
        address = int(self.call("cudaMallocHost", max(count, 1) * dtype.itemsize))
        raw = (ctypes.c_byte * (count * dtype.itemsize)).from_address(address)
        return np.frombuffer(raw, dtype).reshape(tuple(shape))

    def stream(self):
        """See PycudaDevice."""
        return _Handle(self.call("cudaStreamCreate"))

    def upload(self, target, array: np.ndarray, stream) -> None:
        """See PycudaDevice."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", int(target), array.ctypes.data, array.nbytes, kind, stream.handle)

    def download(self, array: np.ndarray, source, stream) -> None:
        """See PycudaDevice."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, int(source), array.nbytes, kind, stream.handle)

    def event(self):
        """See PycudaDevice."""
        return self.call("cudaEventCreate")

    def record(self, event, stream) -> None:
        """See PycudaDevice."""
        self.call("cudaEventRecord", event, stream.handle)

    def elapsed_ms(self, start, end) -> float:
        """See PycudaDevice."""
        self.call("cudaEventSynchronize", end)
        return float(self.call("cudaEventElapsedTime", start, end))

    def synchronize(self, stream) -> None:
        """See PycudaDevice."""
        self.call("cudaStreamSynchronize", stream.handle)

    def memory(self) -> tuple[int, int]:
        """See PycudaDevice."""
        return tuple(self.call("cudaMemGetInfo"))

    def close(self) -> None:
        """Nothing to give back: the primary context lives with the process."""


def open_device():
    """pycuda where it is installed, else cuda-python.

    Raises:
        RuntimeUnavailable: neither is.
    """
    problems = []
    for device in (PycudaDevice, CudaPythonDevice):
        try:
            return device()
        except ImportError as err:
            problems.append(f"{device.name}: {err}")
    raise RuntimeUnavailable(
        "neither pycuda nor cuda-python can be imported: pip install pycuda. " + "; ".join(problems)
    )


class CudaGraph:
    """One captured enqueue, replayed through the CUDA driver (pycuda has no graph calls of its own).

    Args:
        enqueue: issues the work on the stream.
        stream: the stream, with its ``handle``.
        libcuda: the driver library.
    """

    def __init__(self, enqueue, stream, libcuda: str = "libcuda.so.1"):
        self.library, self.stream = ctypes.CDLL(libcuda), ctypes.c_void_p(int(stream.handle))
        graph, self.executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self.stream, 2)  # CU_STREAM_CAPTURE_MODE_RELAXED
        enqueue()
        self._call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(self.executable), graph, ctypes.c_ulonglong(0))

    def _call(self, name: str, *args) -> None:
        status = getattr(self.library, name)(*args)
        if status:
            raise RuntimeUnavailable(f"CUDA graph: {name} failed with CUresult {status}; run with --cuda-graph off")

    def launch(self) -> None:
        """Replay on the stream it was captured on."""
        self._call("cuGraphLaunch", self.executable, self.stream)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one inference."""

    gpu: float  # between two events around the enqueue
    end_to_end: float  # host clock around copy in, enqueue, copy out and the wait


class EngineRunner:
    """An engine with one input and one output, its buffers and its stream.

    Args:
        engine: the ``.plan`` file.
        shape: input shape; needed where the engine's is dynamic.
        cuda_graph: replay a captured graph instead of enqueueing each time.
        plugins: plugin libraries to load first.
        device: a device interface; opened when not given.

    Raises:
        RuntimeUnavailable: TensorRT is missing, the plan is of another version or GPU, or the shape is out of range.
    """

    def __init__(self, engine: Path, shape=None, cuda_graph: bool = False, plugins=(), device=None):
        try:
            import tensorrt as trt
        except ImportError as err:
            raise RuntimeUnavailable(
                f"python package 'tensorrt' cannot be imported ({err}); it comes with JetPack"
            ) from err
        self.device = device or open_device()
        self.version = trt.__version__
        free_before = self.device.memory()[0]
        logger = trt.Logger(trt.Logger.WARNING)
        for plugin in plugins:
            ctypes.CDLL(str(plugin), mode=ctypes.RTLD_GLOBAL)
        trt.init_libnvinfer_plugins(logger, "")
        self.runtime = trt.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(Path(engine).read_bytes())
        if self.engine is None:
            raise RuntimeUnavailable(
                f"{engine} does not load in TensorRT {self.version}: a plan runs only on the TensorRT version and the GPU "
                "it was built with. Build it here with deploy/build_engine.sh"
            )
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or len(names) != 2:
            raise RuntimeUnavailable(f"{engine} has tensors {names}; one input and one output are expected")
        self.input_name, self.output_name = inputs[0], next(n for n in names if n not in inputs)
        self.context = self.engine.create_execution_context()
        shape = tuple(shape or self.engine.get_tensor_shape(self.input_name))
        if min(shape) < 1:
            raise RuntimeUnavailable(f"{engine} has a dynamic input {shape}: give --shape, e.g. --shape 1x3x256x256")
        if self.context.set_input_shape(self.input_name, shape) is False:
            raise RuntimeUnavailable(f"{engine} does not accept the input shape {'x'.join(map(str, shape))}")
        self.stream = self.device.stream()
        self.host_in = self.device.pinned(shape, trt.nptype(self.engine.get_tensor_dtype(self.input_name)))
        out_shape = tuple(self.context.get_tensor_shape(self.output_name))
        self.host_out = self.device.pinned(out_shape, trt.nptype(self.engine.get_tensor_dtype(self.output_name)))
        self.device_in, self.device_out = (
            self.device.alloc(self.host_in.nbytes),
            self.device.alloc(self.host_out.nbytes),
        )
        self.context.set_tensor_address(self.input_name, int(self.device_in))
        self.context.set_tensor_address(self.output_name, int(self.device_out))
        self.start, self.end = self.device.event(), self.device.event()
        self.graph = None
        self._enqueue()  # the first enqueue allocates and must not be captured
        self.device.synchronize(self.stream)
        if cuda_graph:
            self.graph = CudaGraph(self._enqueue, self.stream)
        self.memory_bytes = max(free_before - self.device.memory()[0], 0)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.handle):
            raise RuntimeUnavailable("TensorRT could not enqueue the inference; its log above says why")

    @property
    def shape(self) -> tuple[int, ...]:
        """Input shape, (B, C, H, W)."""
        return self.host_in.shape

    def _launch(self) -> None:
        if self.graph:
            self.graph.launch()
        else:
            self._enqueue()

    def infer(self, array: np.ndarray) -> np.ndarray:
        """Run once; (B, C, H, W) in [0, 1] to a float32 copy of the output."""
        self.host_in[...] = array
        self.device.upload(self.device_in, self.host_in, self.stream)
        self._launch()
        self.device.download(self.host_out, self.device_out, self.stream)
        self.device.synchronize(self.stream)
        return np.array(self.host_out, dtype=np.float32)

    def time(self, transfers: bool) -> Timing:
        """Time one inference of what the input buffer holds."""
        started = time.perf_counter()
        if transfers:
            self.device.upload(self.device_in, self.host_in, self.stream)
        self.device.record(self.start, self.stream)
        self._launch()
        self.device.record(self.end, self.stream)
        if transfers:
            self.device.download(self.host_out, self.device_out, self.stream)
        self.device.synchronize(self.stream)
        total = (time.perf_counter() - started) * 1000
        return Timing(gpu=self.device.elapsed_ms(self.start, self.end), end_to_end=total)
