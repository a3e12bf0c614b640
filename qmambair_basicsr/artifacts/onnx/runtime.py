"""Running an exported file with onnxruntime."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor

from .errors import ExportError


def session(
    model: onnx.ModelProto | str | os.PathLike, threads: int | None = None, exact: bool = False, arena: bool = True
):
    """An onnxruntime CPU session.

    Args:
        model: model or file.
        threads: intra-op threads; None for ``OMP_NUM_THREADS`` or onnxruntime's choice.
        exact: no rewriting of the graph, so that Q/DQ pairs are computed as written.
        arena: keep memory for later runs: a few per cent faster, at the price of more than double the memory.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    threads = threads if threads is not None else int(os.environ.get("OMP_NUM_THREADS", "0"))
    options.intra_op_num_threads = threads
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    with _named("the graph" if isinstance(model, onnx.ModelProto) else str(model)):
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """onnxruntime's exceptions, which are of many kinds (damaged names end in UnicodeDecodeError), as one of ours."""
    try:
        yield
    except Exception as err:
        raise ExportError(
            f"onnxruntime cannot run {what}: {' '.join(str(err).split())[:300]}; export it again"
        ) from err


def read_model(path: str | os.PathLike) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ExportError: missing, or no ONNX file.
    """
    if not Path(path).is_file():
        raise ExportError(f"there is no file {path}; write one with python -m qmambair_basicsr.tools.export --onnx")
    try:
        model = onnx.load(str(path))
    except Exception as err:  # onnx raises protobuf's own classes
        raise ExportError(f"{path} is damaged or no ONNX file: {str(err)[:200]}") from err
    if not model.graph.node:
        raise ExportError(f"{path} holds no graph: is it an ONNX file?")
    return model


def facts_of(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata that ``tools.export`` writes into a file."""
    return {entry.key: entry.value for entry in model.metadata_props}


class OnnxNetwork:
    """An exported file as a function of image tensors.

    Args:
        path: file written by ``tools.export``.
        threads, exact, arena: as in :func:`session`.

    Attributes:
        size: (height, width) of a graph with fixed sides, else None.
        channels: image channels.
        multiple: what the sides of an input must be divisible by.
        facts: metadata of the file.

    Raises:
        ExportError: missing, damaged, without the export's metadata, or with nodes that need a TensorRT plugin.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None, exact: bool = False, arena: bool = True):
        model = read_model(path)
        self.path, self.facts = Path(path), facts_of(model)
        if "size_multiple" not in self.facts:
            raise ExportError(f"{path} was not written by qmambair_basicsr.tools.export")
        for name in ("size_multiple", "scale"):
            value = self.facts.get(name, "")
            if re.fullmatch("[1-9][0-9]{0,3}", value) is None:
                raise ExportError(f"{path}: its metadata say {name} = {value!r:.60}, which is no size; export it again")
        own = {function.domain for function in model.functions}
        foreign = sorted({n.op_type for n in model.graph.node if n.domain not in ("", "ai.onnx", *own)})
        if foreign:
            raise ExportError(
                f"{path} needs a TensorRT plugin ({', '.join(foreign)}), which onnxruntime has not: export with --scan onnx"
            )
        dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        self.channels, self.multiple = dims[1], int(self.facts["size_multiple"])
        self.size = (dims[2], dims[3]) if dims[2] and dims[3] else None
        self.session = session(path, threads, exact, arena)

    def __call__(self, x: Tensor) -> Tensor:
        """(1, C, H, W) in [0, 1] -> (1, C, H * scale, W * scale)."""
        with _named(str(self.path)):
            return torch.from_numpy(self.session.run(None, {"input": x.numpy()})[0])
