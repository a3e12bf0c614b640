"""What computes: PyTorch in floating point, native kernels on integer codes, or onnxruntime."""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..layers.info import size_multiple
from ..layers.sites import quantizers_of
from ..strict import did_you_mean

__all__ = ["BACKENDS", "BackendError", "Network", "device_of", "runs_on"]

BACKENDS = ("auto", "integer", "float", "onnx")
Network = Callable[[Tensor], Tensor]
"""(B, C, H, W) float32 in [0, 1] -> (B, C, H * scale, W * scale) float32, both on the CPU."""

logger = logging.getLogger(__name__)


class BackendError(ValueError):
    """A backend or device is not there, or cannot run a network; the message says which and what to do."""


def device_of(name: str) -> torch.device:
    """The device of a name; ``auto`` is a GPU where torch has one.

    Raises:
        BackendError: torch knows no such device, or this machine has none.
    """
    mps = getattr(torch.backends, "mps", None)
    has_mps = mps is not None and mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError as err:
        raise BackendError(
            f"device {name!r} is unknown{did_you_mean(str(name), ('cpu', 'cuda', 'mps', 'auto'))}; use cpu, cuda, cuda:1, mps or auto"
        ) from err
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": has_mps}.get(device.type, False)
    if not there or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise BackendError(f"this machine, or this build of torch, has no device {name!r}; use --device cpu")
    return device


def runs_on(net: nn.Module, backend: str, device: torch.device, half: bool) -> str:
    """The backend that ``auto`` stands for; any other is returned as it is, after a look at whether it can be.

    Raises:
        BackendError: an unknown backend, or one that cannot run on this device or in half precision.
    """
    if backend not in BACKENDS:
        raise BackendError(
            f"backend {backend!r} is unknown{did_you_mean(str(backend), BACKENDS)}; use {', '.join(BACKENDS)}"
        )
    if half and device.type == "cpu":
        raise BackendError("half precision is for GPUs: CPUs compute it more slowly than float32; leave it out")
    if backend in ("integer", "onnx") and (device.type != "cpu" or half):
        raise BackendError(f"the backend {backend} runs on the CPU, in float32 around its integers; got {device}")
    if backend == "integer" and not quantizers_of(net):
        raise BackendError(f"{type(net).__name__} is not quantized: the backend integer has no codes to compute with")
    if backend != "auto":
        return backend
    usable = device.type == "cpu" and not half and bool(quantizers_of(net)) and _has_runtime()
    return "integer" if usable else "float"


def build(net: nn.Module, backend: str, device: torch.device, half: bool, demanded: bool) -> tuple[Network, str]:
    """A function that runs a network, and the name of the backend that it uses.

    Args:
        net: in evaluation, on the CPU; left as it is.
        backend: ``integer``, ``float`` or ``onnx``.
        device, half: of the float backend.
        demanded: the user named the backend. Otherwise a network that the integer backend cannot run goes to ``float``.

    Raises:
        BackendError: it cannot run this network.
    """
    if backend == "integer":
        try:
            return _integer(net), backend
        except BackendError as err:
            if demanded:
                raise
            logger.warning("%s; the backend float is used", err)
    if backend == "onnx":
        return _onnx(net), backend
    return _float(net, device, half), "float"


def _float(net: nn.Module, device: torch.device, half: bool) -> Network:
    placed = copy.deepcopy(net).to(device) if device.type != "cpu" else net
    kind = next((p.dtype for p in net.parameters()), torch.float32)

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.float16, enabled=half):
            return placed(x.to(device, kind)).float().cpu()

    return run


def _has_runtime() -> bool:
    return importlib.util.find_spec(f"{__package__.rpartition('.')[0]}.runtime") is not None


def _integer(net: nn.Module) -> Network:
    if not _has_runtime():
        raise BackendError(
            "the backend integer needs qmambair_basicsr.runtime (its function native_network), which this installation "
            "has not; use --backend float"
        )
    from ..runtime import native_network

    try:
        native = native_network(net)
    except (ValueError, RuntimeError) as err:  # LoweringError, no native kernels
        raise BackendError(f"the backend integer cannot run {type(net).__name__}: {err}") from err

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        return native(x)

    return run


def _onnx(net: nn.Module) -> Network:
    try:
        from ..artifacts.onnx.file import ExportSettings, export_onnx
        from ..artifacts.onnx.runtime import OnnxNetwork
    except ImportError as err:
        raise BackendError(f"the backend onnx needs the extra `export` of this package ({err.name})") from err
    multiple = size_multiple(net)
    side = -(-64 // multiple) * multiple
    with tempfile.TemporaryDirectory(prefix="qmambair-") as folder:
        file = Path(folder) / "net.onnx"
        try:
            export_onnx(net, file, ExportSettings(side, side, dynamic=True))
            return OnnxNetwork(file, torch.get_num_threads(), arena=False)
        except ValueError as err:
            raise BackendError(f"the backend onnx cannot run {type(net).__name__}: {err}") from err
