"""Facts that an engine build needs of an ONNX file, read before anything is built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


class BuildRefused(Exception):
    """The request cannot give a meaningful engine; the message says why and what to do."""


@dataclass(frozen=True)
class Graph:
    """Facts about an ONNX file."""

    path: Path
    opset: int
    inputs: dict[str, list[int | None]]  # name -> dims, None where dynamic
    qdq_nodes: int
    float16: bool  # the graph computes in FP16 by itself (exported with --fp16, or FP16 weights)
    custom_ops: list[str]  # op types outside the standard ONNX domains: they need a plugin
    facts: dict[str, str]  # what tools.export notes of the network

    def model_facts(self) -> dict[str, str | int | None]:
        """Architecture, bit-widths, kind of scan, DLS and number of parameters; None where the file does not say."""
        bits = re.fullmatch(r"w(\d+)a(\d+)", self.facts.get("bits", ""))
        params = self.facts.get("params", "")
        return {
            "arch": self.facts.get("arch"),
            "bits_w": int(bits[1]) if bits else None,
            "bits_a": int(bits[2]) if bits else None,
            "scan_impl": self.facts.get("scan"),
            "dls": self.facts.get("dls"),
            "params": int(params) if params.isdigit() else None,
        }

    @property
    def dynamic(self) -> bool:
        """True when any input dimension is symbolic."""
        return any(dim is None for dims in self.inputs.values() for dim in dims)


def read_graph(path: Path) -> Graph:
    """Read the facts of an ONNX file (weights kept in external files are not loaded).

    Raises:
        BuildRefused: the file is missing, not an ONNX model, or the FP64 form of one.
    """
    if not path.is_file():
        raise BuildRefused(f"no such file: --onnx {path}. Export one with python -m qmambair_basicsr.tools.export")
    try:
        import onnx
    except ImportError as err:
        raise BuildRefused(f"python package 'onnx' is needed to look into {path}: pip install onnx ({err})") from err
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as err:
        raise BuildRefused(f"{path} is not a readable ONNX model: {err}") from err
    if not model.graph.node:
        raise BuildRefused(f"{path} holds no graph: is it an ONNX file?")
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in constants
    }
    nodes = list(_walk(model.graph))
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if facts.get("precision") == "fp64":
        raise BuildRefused(
            f"{path} is in FP64, for tools.verify only: build from the file that export wrote with --onnx"
        )
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    kinds = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1]
    return Graph(
        path=path,
        opset=max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0),
        inputs=inputs,
        qdq_nodes=sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes),
        float16=facts["precision"] == "fp16" if "precision" in facts else kinds.count(half) > kinds.count(single),
        custom_ops=sorted({node.op_type for node in nodes if node.domain not in ("", "ai.onnx", "ai.onnx.ml")}),
        facts=facts,
    )


def _walk(graph):
    """Every node of a graph, those in the bodies of Scan, Loop and If included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _walk(attribute.g)
