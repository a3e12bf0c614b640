"""Tracing a network block by block, each kind of block once.

The exporter takes milliseconds for every operation, and partly the square of their number; most of a network are blocks
that differ in the values of their tensors only. Here one block of each kind is traced, the network is traced with one
node in place of every block, and the nodes are then replaced by copies of what was traced, each with the tensors of its
own block.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnxscript import ir
from torch import Tensor, nn

from ...archs.blocks import DropPath
from ...ops.onnx_nodes import DOMAIN, OPSET, onnx_node
from .node_names import SCOPES

_NODE = "Unit"
_OF_NO_EFFECT = {"training", "site"}
_SIMPLE = (bool, int, float, str, type(None))


def is_unit(module: nn.Module) -> bool:
    """Whether a module is a block that says it can be traced apart: ``forward`` takes a map and gives one of its shape."""
    return getattr(module, "traced_apart", False)


def structure(module: nn.Module) -> tuple:
    """Everything the trace of a module in evaluation depends on, besides the values of its parameters and buffers.

    An attribute that is neither a number, a text nor a sequence of these stands for itself, so that two modules with
    such attributes are only alike where they share the object.
    """

    def plain(value: object) -> object:
        if isinstance(value, (tuple, list)):
            return tuple(map(plain, value))
        return value if isinstance(value, _SIMPLE) else id(value)

    rows = []
    for name, part in module.named_modules():
        own = {k: v for k, v in vars(part).items() if k[0] != "_" and k not in _OF_NO_EFFECT}
        if isinstance(part, DropPath):
            own.pop("p")  # the rate plays no part in evaluation
        attributes = tuple(sorted((k, plain(v)) for k, v in own.items() if not isinstance(v, nn.Module)))
        hooks = tuple(map(id, (*part._forward_pre_hooks.values(), *part._forward_hooks.values())))
        rows.append((name, type(part), attributes, hooks))
    first: dict[int, str] = {}  # a tensor may have several names
    tensors = tuple(
        (name, first.setdefault(id(t), name), t.dtype, tuple(t.shape)) for name, t in _tensors(module).items()
    )
    return tuple(rows), tensors


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, under all of their names."""
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return dict(every)


class _Placeholder(nn.Module):
    """One node in place of a block."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return onnx_node(f"{DOMAIN}::{_NODE}", (x,), x.dtype, x.shape, {"unit": self.name}, version=1)


def _take_out(net: nn.Module) -> dict[str, tuple[nn.Module, tuple]]:
    """Put placeholders in place of the blocks of which there are several alike: name -> block, its structure."""
    blocks = {name: module for name, module in net.named_modules() if is_unit(module)}
    kinds = {name: structure(module) for name, module in blocks.items()}
    every = list(kinds.values())
    units = {name: (block, kinds[name]) for name, block in blocks.items() if every.count(kinds[name]) > 1}
    for name in units:
        parent, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(parent), leaf, _Placeholder(name))
    return units


def trace(net: nn.Module, example: Tensor, shapes: tuple | None, progress: Callable[[str], None]) -> ir.Model:
    """The graph of a network as the exporter makes it, not simplified.

    Args:
        net: network in evaluation; blocks are taken out of it.
        example: its input.
        shapes: its dynamic shapes, as for ``torch.export``; None for fixed sides.
        progress: told what is being traced.
    """
    units = _take_out(net)
    progress("tracing the network")
    model = _export(net, example, shapes, "input", "output")
    maps = {info.name: info.type.tensor_type for info in model.graph.value_info}
    templates: dict[tuple, onnx.ModelProto] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type != _NODE:
            nodes.append(node)
            continue
        name = helper.get_attribute_value(node.attribute[0]).decode()
        block, kind = units[name]
        sample, free = _sample(maps[node.output[0]])
        key = kind, sample.shape, sample.dtype
        if key not in templates:
            progress(f"tracing blocks, kind {len(templates) + 1}")
            templates[key] = _export(block, sample, free, "x", "y")
            _merge(model, templates[key])
        nodes += _copy(templates[key], name, block, node, model)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return ir.from_proto(model)


def _sample(kind: onnx.TypeProto.Tensor) -> tuple[Tensor, tuple | None]:
    """A map of a type, and dynamic shapes for its open sides, whose length in the sample is arbitrary."""
    dims = kind.shape.dim
    sides = [dim.dim_value or 8 + 4 * i for i, dim in enumerate(dims)]
    free = {i: torch.export.Dim.AUTO for i, dim in enumerate(dims) if not dim.dim_value}
    values = np.random.default_rng(0).random(sides).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return torch.from_numpy(values), (free,) if free else None


def _export(net: nn.Module, example: Tensor, shapes: tuple | None, given: str, result: str) -> onnx.ModelProto:
    program = torch.onnx.export(
        net,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[given],
        output_names=[result],
        dynamic_shapes=shapes,
        verbose=False,
        optimize=False,
    )
    ir.passes.common.NameFixPass()(program.model)  # a node and a buffer of the network may both be called "mean"
    return program.model_proto


def _merge(model: onnx.ModelProto, template: onnx.ModelProto) -> None:
    """Add the functions and operator sets of a template."""
    known = {(f.domain, f.name, f.overload) for f in model.functions}
    model.functions.extend(f for f in template.functions if (f.domain, f.name, f.overload) not in known)
    domains = {o.domain for o in model.opset_import}
    model.opset_import.extend(o for o in template.opset_import if o.domain not in domains)


def _copy(
    template: onnx.ModelProto, path: str, block: nn.Module, place: onnx.NodeProto, model: onnx.ModelProto
) -> list[onnx.NodeProto]:
    """Nodes of a template with the tensors of the block at ``path``, which are added to the model's."""
    graph = template.graph
    ends = {"": "", graph.input[0].name: place.input[0], graph.output[0].name: place.output[0]}

    def renamed(name: str) -> str:
        return ends.get(name, f"{path}.{name}")

    own, parts = _tensors(block), {name for name, _ in block.named_modules(remove_duplicate=False)}
    for tensor in graph.initializer:
        if tensor.name in own:
            model.graph.initializer.append(numpy_helper.from_array(own[tensor.name].numpy(), renamed(tensor.name)))
        else:  # a constant of the code
            model.graph.initializer.add().CopyFrom(tensor)
            model.graph.initializer[-1].name = renamed(tensor.name)
    for info in graph.value_info:
        new = model.graph.value_info.add()
        new.CopyFrom(info)
        new.name = renamed(info.name)
        for dim in new.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = f"{path}.{dim.dim_param}"
    nodes = []
    for node in graph.node:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.name = renamed(node.name)
        new.input[:], new.output[:] = map(renamed, node.input), map(renamed, node.output)
        for entry in new.metadata_props:
            if entry.key == SCOPES:
                scopes = ast.literal_eval(entry.value)
                entry.value = repr([_inside(path, scope, parts) for scope in scopes[:-1]] + scopes[-1:])
        nodes.append(new)
    return nodes


def _inside(path: str, scope: str, parts: set[str]) -> str:
    """A scope of a block's own trace as a scope of the network's."""
    if scope == "":
        return path
    return f"{path}.{scope}" if scope in parts else scope
