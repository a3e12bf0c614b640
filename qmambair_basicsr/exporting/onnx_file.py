"""Writing a quantized network as an ONNX file, and checking the file."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from ..archs.routing import flat_order
from ..layers.calibrate import quantizers_of
from ..layers.convert import freeze_parameters
from ..ops.ss2d_scan import DIRECTIONS
from ..quantizers import DLS
from .modules import OPSET, ExportError, make_exportable
from .scan_graph import SCAN_NODE, expand_scan

_DOMAIN = "qmambair"


@dataclass(frozen=True)
class ExportSettings:
    """How to export.

    Attributes:
        height, width: size of the input; the example size when ``dynamic``.
        dynamic: leave height and width open.
        scan: ``onnx`` (standard operators) or ``plugin`` (one ``SS2DScan`` node for the TensorRT plugin).
        scan_chunk: pixels per iteration of the ONNX ``Scan``.
    """

    height: int = 64
    width: int = 64
    dynamic: bool = False
    scan: str = "onnx"
    scan_chunk: int = 16


def _scan_node(x, delta, A, B, C, D, delta_bias, delta_softplus=True, directions=DIRECTIONS) -> Tensor:
    attributes = {"directions": [DIRECTIONS.index(d) for d in directions], "delta_softplus": int(delta_softplus)}
    inputs = (x, delta, A, B, C, D, delta_bias)
    return torch.onnx.ops.symbolic(
        f"{_DOMAIN}::{SCAN_NODE}", inputs, attributes, dtype=x.dtype, shape=x.shape, version=1
    )


def _semantic_order(picked: Tensor) -> tuple[Tensor, Tensor]:
    """``routing.semantic_order`` for the exporter, which has no stable sort: keys that are all different."""
    length = picked.shape[1]
    keys = picked * length + torch.arange(length)
    return flat_order(torch.sort(keys, dim=-1).indices)


def export_onnx(
    net: nn.Module, path: str | os.PathLike, settings: ExportSettings, facts: dict[str, str] | None = None
) -> onnx.ModelProto:
    """Write a calibrated quantized network as ONNX (opset 18), and check the file.

    DLS quantizers still in the network are exported with statistics in the graph; use ``freeze_dls`` before to make
    them constants.

    Args:
        net: the network; left as it is.
        path: destination.
        settings: see :class:`ExportSettings`.
        facts: more metadata entries.

    Returns:
        The model written.

    Raises:
        ExportError: something in the network cannot be exported; the message names it.
    """
    if getattr(net, "window_size", None) is not None:
        if settings.dynamic:
            raise ExportError(f"{type(net).__name__} cuts windows whose number is fixed at export: leave out --dynamic")
        if net.eval_routing != "argmax":
            raise ExportError(f"{type(net).__name__} routes tokens with random noise: set eval_routing: argmax")
    multiple = getattr(net, "size_multiple", 1)
    if settings.height % multiple or settings.width % multiple:
        raise ExportError(f"height and width must be multiples of {multiple} for {type(net).__name__}")
    dynamic_dls = any(isinstance(q, DLS) and q.role == "act" for q in quantizers_of(net).values())
    original = net
    net = make_exportable(freeze_parameters(copy.deepcopy(net)).cpu().eval()).requires_grad_(False)
    channels = input_channels(original)
    example = torch.rand(1, channels, settings.height, settings.width, generator=torch.Generator().manual_seed(0))
    shapes = None
    if settings.dynamic:
        height, width = torch.export.Dim("h", min=2, max=4096), torch.export.Dim("w", min=2, max=4096)
        shapes = ({2: multiple * height if multiple > 1 else height, 3: multiple * width if multiple > 1 else width},)
    with (
        mock.patch("qmambair_basicsr.archs.ss2d.ss2d_scan", _scan_node),
        mock.patch("qmambair_basicsr.archs.mambairv2_blocks.semantic_order", _semantic_order),
        mock.patch("qmambair_basicsr.archs.mambairv2_blocks.is_fused", lambda *_: False),  # ONNX knows no such node
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=shapes,
            verbose=False,
            optimize=True,
        )
    model = program.model_proto
    _settle_scan(model, settings)
    metadata = {
        "arch": type(original).__name__,
        "scale": str(getattr(original, "upscale", 1)),
        "size_multiple": str(multiple),
        "in_chans": str(channels),
        "bits": _bits(original),
        "dls": "dynamic" if dynamic_dls else "frozen",
        "scan": settings.scan if settings.scan == "plugin" else f"onnx, chunk {settings.scan_chunk}",
    }
    helper.set_model_props(model, metadata | (facts or {}))
    check_model(model, settings)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(model.SerializeToString())
    os.replace(part, path)
    return model


def input_channels(net: nn.Module) -> int:
    """Channels of the images a network takes."""
    for attribute in ("in_chans", "inp_channels"):
        if hasattr(net, attribute):
            return getattr(net, attribute)
    return net.conv_first.in_channels


def _bits(net: nn.Module) -> str:
    """``w4a2`` and the like: the smallest widths of weights and activations."""
    widths = {"weight": 32, "act": 32}
    for quantizer in quantizers_of(net).values():
        if quantizer.role in widths:
            widths[quantizer.role] = min(widths[quantizer.role], quantizer.bits)
    return f"w{widths['weight']}a{widths['act']}"


def _settle_scan(model: onnx.ModelProto, settings: ExportSettings) -> None:
    """Turn the placeholder scan nodes into ONNX ``Scan`` graphs, or into plugin nodes."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != SCAN_NODE:
            nodes.append(node)
        elif settings.scan == "plugin":
            node.attribute.append(helper.make_attribute("plugin_version", "1"))
            nodes.append(node)
        else:
            new, constants = expand_scan(node, settings.scan_chunk)
            nodes += new
            model.graph.initializer.extend(constants)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [o for o in model.opset_import if o.domain != _DOMAIN or settings.scan == "plugin"]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def check_model(model: onnx.ModelProto, settings: ExportSettings) -> None:
    """Check the graph with onnx.checker and shape inference, and run it once in onnxruntime.

    A graph with plugin nodes is not standard ONNX: of those only the names of tensors are checked.

    Raises:
        ExportError: the file is not valid, or its output is not finite.
    """
    if settings.scan == "plugin":
        known = {i.name for i in model.graph.input} | {i.name for i in model.graph.initializer} | {""}
        for node in model.graph.node:
            missing = [name for name in node.input if name not in known]
            if missing:
                raise ExportError(f"internal: {node.name} reads {missing[0]}, which nothing computes")
            known |= set(node.output)
        return
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise ExportError(f"the exported graph is not valid ONNX: {err}") from err
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    image = np.random.default_rng(0).random((1, channels, settings.height, settings.width), np.float32)
    output = session(model).run(None, {"input": image})[0]
    if not np.isfinite(output).all():
        raise ExportError("the exported graph computes NaN or infinity")


def session(model: onnx.ModelProto | str | os.PathLike, threads: int | None = None, exact: bool = False):
    """An onnxruntime CPU session.

    Args:
        model: model or file.
        threads: intra-op threads; None for ``OMP_NUM_THREADS`` or onnxruntime's choice.
        exact: no rewriting of the graph, so that Q/DQ pairs are computed as written.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    threads = threads if threads is not None else int(os.environ.get("OMP_NUM_THREADS", "0"))
    options.intra_op_num_threads = threads
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
