"""Writing a quantized network as an ONNX file, and checking the file."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir
from torch import nn

from ...files import write_bytes
from ...layers.convert import constant_grids, frozen, require_quantized
from ...layers.info import network_info
from ...layers.sites import PlacedSite, activation_sites, parameter_sites, quantizer_keys, quantizers_of
from ...lowering import lower
from ...ops.backend import ExportTarget, exporting
from ...ops.onnx_nodes import DOMAIN
from ...ops.ss2d_scan.onnx import SCAN_NODE
from . import float64
from .errors import ExportError
from .node_names import name_nodes
from .precision import in_double, make_half
from .runtime import facts_of, session
from .scan_graph import constant_grid, expand_scan
from .simplify import simplify
from .units import trace

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}
"""Precisions that feature maps can be computed in."""

SCAN_CONSTANTS = {2: "A", 5: "D", 6: "delta_bias"}
"""Inputs of a scan node that are constants of a quantized network: position -> name."""


@dataclass(frozen=True)
class ExportSettings:
    """How to export.

    Attributes:
        height, width: size of the input; the example size when ``dynamic``.
        dynamic: leave height and width open.
        scan: ``onnx`` (standard operators) or ``plugin`` (one ``SS2DScan`` node for the TensorRT plugin).
        scan_chunk: pixels per iteration of the ONNX ``Scan``.
        scan_table: the plugin looks decays up by the code of delta where that lies on a constant grid of at most 16
            values.
        precision: ``fp32``; ``fp16`` computes in FP16 what is not quantized, for TensorRT 11, which has no precision
            flags; ``fp64`` is for ``tools.verify`` (see ``precision``).
    """

    height: int = 64
    width: int = 64
    dynamic: bool = False
    scan: str = "onnx"
    scan_chunk: int = 16
    precision: str = "fp32"
    scan_table: bool = False


def export_onnx(
    net: nn.Module,
    path: str | os.PathLike,
    settings: ExportSettings,
    facts: dict[str, str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> onnx.ModelProto:
    """Write a full-precision or calibrated quantized network as ONNX (opset 18), and check the file.

    DLS quantizers still in the network are exported with statistics in the graph; use ``freeze_dls`` before to make
    them constants.

    Args:
        net: the network; left as it is.
        path: destination.
        settings: see :class:`ExportSettings`.
        facts: more metadata entries.
        progress: told, in words, each step that takes its time.

    Returns:
        The model written.

    Raises:
        ExportError: something in the network cannot be exported; the message names it.
    """
    info = network_info(net)
    if info.random_routing:
        raise ExportError(f"{type(net).__name__} routes tokens with random noise: set eval_routing: argmax")
    if settings.precision == "fp64" and settings.scan == "plugin":
        raise ExportError("the TensorRT plugin has no FP64: export FP64 with standard operators (scan: onnx)")
    multiple, channels = info.size_multiple, info.channels
    if settings.height % multiple or settings.width % multiple:
        raise ExportError(f"height and width must be multiples of {multiple} for {type(net).__name__}")
    follows = any(q.role == "act" and q.dynamic_form() is not None for q in quantizers_of(net).values())
    original = net
    net = _exportable(net, settings.precision)
    example = torch.rand(1, channels, settings.height, settings.width, generator=torch.Generator().manual_seed(0))
    shapes = None
    if settings.dynamic:
        height, width = torch.export.Dim("h", min=2, max=4096), torch.export.Dim("w", min=2, max=4096)
        shapes = ({2: multiple * height if multiple > 1 else height, 3: multiple * width if multiple > 1 else width},)
    modules = {name for name, _ in net.named_modules(remove_duplicate=False)}  # one may have several names
    target = ExportTarget(PRECISIONS[settings.precision], settings.scan == "plugin")
    with exporting(target), _quiet_exporter(), torch.no_grad():
        graph = trace(net, example, shapes, progress)
    progress("simplifying the graph")
    simplify(graph)
    model = ir.to_proto(graph)
    name_nodes(model, modules)
    settle_scans(model, settings)
    if settings.precision == "fp64":
        float64.lower(model)
    metadata = {
        "arch": type(original).__name__,
        "scale": str(info.scale),
        "size_multiple": str(multiple),
        "in_chans": str(channels),
        "bits": _bits(original),
        "params": str(_parameters(original)),
        "precision": settings.precision,
        "dls": "dynamic" if follows else "frozen",
        "scan": settings.scan if settings.scan == "plugin" else f"onnx, chunk {settings.scan_chunk}",
    }
    constants = constant_grids(original)
    if constants:
        metadata["grids"] = json.dumps(constants)
    helper.set_model_props(model, metadata | (facts or {}))
    progress("checking the graph")
    check_model(model, settings)
    write_bytes(path, model.SerializeToString())
    return model


def _exportable(net: nn.Module, precision: str) -> nn.Module:
    """A copy of a network, on the CPU, that the exporter can trace."""
    net = in_double(net) if precision == "fp64" else copy.deepcopy(net).cpu().eval().requires_grad_(False)
    if quantizers_of(net):
        _require_integer_weights(net)
        net = lower(net)
    return make_half(net) if precision == "fp16" else net


def _require_integer_weights(net: nn.Module) -> None:
    """Refuse weights that int8 nodes cannot hold.

    Raises:
        ExportError: codes of a weight are no integers times a scale for each row; the message names it.
    """
    require_quantized(net)
    for placed in parameter_sites(net):
        codes = frozen(placed)
        if placed.site.role != "weight" or codes.integer_form():
            continue
        if placed.quantizer.cut is not None:
            _refuse_groups(placed)
        raise ExportError(
            f"{placed.site.label}: the codes of {type(placed.quantizer).__name__} ({codes.kind.__name__}) are no "
            "integers times one scale for each row, which int8 nodes of ONNX need; `lowering` and packed files take "
            "them"
        )
    for placed in activation_sites(net):
        if placed.quantizer.cut is not None and placed.site.kind == "act":
            _refuse_groups(placed)


def _refuse_groups(placed: PlacedSite) -> None:
    raise ExportError(
        f"{placed.site.label}: {type(placed.quantizer).__name__} has steps for groups of channels, which int8 nodes of ONNX "
        "cannot have; train with granularity: channel (weights) or tensor (inputs), or run it by `--backend integer` or "
        "from a packed file, which take groups"
    )


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks on its own work, which say nothing to the one who exports."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _bits(net: nn.Module) -> str:
    """``w4a2`` and the like: the smallest widths of weights and activations; ``w32a32`` in full precision."""
    widths = {"weight": 32, "act": 32}
    for quantizer in quantizers_of(net).values():
        if quantizer.role in widths:
            widths[quantizer.role] = min(widths[quantizer.role], quantizer.bits)
    return f"w{widths['weight']}a{widths['act']}"


def _parameters(net: nn.Module) -> int:
    """Number of parameters, those of quantizers left out."""
    ours = quantizer_keys(net)
    return sum(parameter.numel() for name, parameter in net.named_parameters() if name not in ours)


def settle_scans(model: onnx.ModelProto, settings: ExportSettings) -> None:
    """Turn the placeholder scan nodes into ONNX ``Scan`` graphs, or into plugin nodes.

    Their constants become ``<node>.A``, ``<node>.D`` and ``<node>.delta_bias``.
    """
    nodes, kind = [], TensorProto.DOUBLE if settings.precision == "fp64" else TensorProto.FLOAT
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    _fold_reshapes(model, constants)
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == SCAN_NODE:
            for index, name in SCAN_CONSTANTS.items():
                if node.input[index] in constants:  # scans may share one: the exporter merges equal constants
                    own = model.graph.initializer.add()
                    own.CopyFrom(constants[node.input[index]])
                    own.name = node.input[index] = f"{node.name}.{name}"
        if node.op_type != SCAN_NODE:
            nodes.append(node)
        elif settings.scan == "plugin":
            node.attribute.append(helper.make_attribute("plugin_version", "1"))
            grid = constant_grid(producers, constants, node.input[1]) if settings.scan_table else None
            if grid is not None:
                node.attribute.append(helper.make_attribute("delta_grid", grid))
            nodes.append(node)
        else:
            new, added = expand_scan(node, settings.scan_chunk, kind)
            nodes += new
            model.graph.initializer.extend(added)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    stored = [t for t in model.graph.initializer if t.name in used or t.name not in constants]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    kept = [o for o in model.opset_import if o.domain != DOMAIN or settings.scan == "plugin"]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _fold_reshapes(model: onnx.ModelProto, constants: dict[str, TensorProto]) -> None:
    """Turn reshaped constants, which ``simplify`` leaves where they are large, into constants."""
    kept = []
    for node in model.graph.node:
        if node.op_type == "Reshape" and all(name in constants for name in node.input):
            values, shape = (numpy_helper.to_array(constants[name]) for name in node.input)
            constants[node.output[0]] = numpy_helper.from_array(values.reshape(shape), node.output[0])
            model.graph.initializer.append(constants[node.output[0]])
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def check_model(model: onnx.ModelProto, settings: ExportSettings) -> None:
    """Check the graph with onnx.checker and shape inference, and run it once in onnxruntime.

    A graph with plugin nodes is not standard ONNX: of those only the names of tensors are checked.

    Raises:
        ExportError: the file is not valid, or its output is not finite or of another size than expected.
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
    scale = int(facts_of(model)["scale"])
    if output.shape[2:] != (settings.height * scale, settings.width * scale):
        raise ExportError(f"internal: the output is {output.shape[2:]}, not {scale} times the input")
