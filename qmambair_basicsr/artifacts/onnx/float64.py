"""Operators that ONNX or onnxruntime lack in FP64, as functions stored in the file (model-local functions).

The ONNX standard quantizes FP32 and FP16 only; onnxruntime's CPU provider has no convolution and no error function in
FP64. Nodes of these four operators keep their names, inputs and outputs and move to the domain of the functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, parser

from ...ops.onnx_nodes import FLOAT64_DOMAIN as DOMAIN
from ...ops.onnx_nodes import OPSET

_ERF_END, _ERF_DEGREE = 6.0, 50  # 1 - erf(6) is 2e-17; the series ends below 1e-16


@dataclass(frozen=True)
class Geometry:
    """A convolution: kernel sides, strides, dilations, padding (top, left, bottom, right), groups, channels per group."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int
    channels: int

    def name(self) -> str:
        """Name of its function, without that of the operator's bias."""
        parts = (*self.kernel, *self.strides, *self.dilations, *self.pads, self.groups, self.channels)
        return "Conv_" + "_".join(map(str, parts))


def lower(model: onnx.ModelProto) -> None:
    """Move the nodes that need it to functions, and add these to a model, in place."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    functions: dict[str, onnx.FunctionProto] = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            weights[node.output[0]] = weights.get(node.input[0], ())
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            geometry = _geometry(attributes, weights[node.input[1]])
            node.op_type = geometry.name() + ("_bias" if len(node.input) > 2 else "")
            if node.op_type not in functions:
                functions[node.op_type] = _function(node.op_type, *_conv(geometry, len(node.input) > 2))
        elif node.op_type == "DequantizeLinear" and "axis" in attributes:
            node.op_type = "DequantizeLinear_rows"  # axis is 0: one scale per output channel
        if node.op_type in _BODIES and node.op_type not in functions:
            functions[node.op_type] = _function(node.op_type, *_BODIES[node.op_type]())
        if node.op_type in functions:
            node.domain = DOMAIN
            del node.attribute[:]
    model.functions.extend(functions[name] for name in sorted(functions))
    others = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend([*others, helper.make_opsetid(DOMAIN, 1)])


def _function(name: str, signature: str, body: Sequence[str]) -> onnx.FunctionProto:
    head = f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">'
    return parser.parse_function(f"{head}\n{name} {signature}\n{{\n" + "\n".join(body) + "\n}")


def _integers(name: str, values: Sequence[int]) -> str:
    return f"{name} = Constant <value_ints: ints = [{', '.join(map(str, values))}]> ()"


def _real(name: str, value: float) -> str:
    return f"{name} = Constant <value: tensor = double {{{value!r}}}> ()"


def _geometry(attributes: dict, weight: tuple[int, ...]) -> Geometry:
    return Geometry(
        tuple(weight[2:]),
        tuple(attributes.get("strides", (1, 1))),
        tuple(attributes.get("dilations", (1, 1))),
        tuple(attributes.get("pads", (0, 0, 0, 0))),
        attributes.get("group", 1),
        weight[1],
    )


def _conv(geometry: Geometry, bias: bool) -> tuple[str, list[str]]:
    """One matrix product (product, where groups have one channel) for each pixel of the kernel."""
    top, left, bottom, right = geometry.pads
    groups, channels = geometry.groups, geometry.channels
    grouped = groups > 1
    taps = math.prod(geometry.kernel)
    body = [
        _integers("pads", (0, 0, top, left, 0, 0, bottom, right)),
        _integers("sides", (1, 2)),
        _integers("steps", geometry.strides),
        _integers("weight_shape", (groups, -1, channels, taps)),
        _integers("map_shape", (0, 0, 0, groups, 1, channels) if grouped else (0, 0, 0, channels)),
        _integers("flat", (0, 0, 0, -1)),
        "padded = Pad (x, pads)",
        "last = Transpose <perm: ints = [0, 2, 3, 1]> (padded)",
        "grouped_weight = Reshape (w, weight_shape)",
        "kernels = Transpose <perm: ints = [3, 0, 2, 1]> (grouped_weight)",  # (taps, G, C / G, O / G)
    ]
    if not grouped:
        body += [_integers("one", (1,)), "taps_weight = Squeeze (kernels, one)"]
    product = "Mul" if grouped and channels == 1 else "MatMul"
    ends = (np.array(geometry.kernel) - 1) * geometry.dilations
    total = None
    for tap in range(taps):
        start = np.array(divmod(tap, geometry.kernel[1])) * geometry.dilations
        stop = [int(s - e) if s < e else np.iinfo(np.int64).max for s, e in zip(start, ends, strict=True)]
        body += [
            _integers(f"start{tap}", start.tolist()),
            _integers(f"stop{tap}", stop),
            f"cut{tap} = Slice (last, start{tap}, stop{tap}, sides, steps)",
            f"map{tap} = Reshape (cut{tap}, map_shape)",
            f"tap{tap} = Constant <value_int: int = {tap}> ()",
            f"kernel{tap} = Gather <axis: int = 0> ({'kernels' if grouped else 'taps_weight'}, tap{tap})",
            f"product{tap} = {product} (map{tap}, kernel{tap})",
        ]
        if total is not None:
            body.append(f"sum{tap} = Add ({total}, product{tap})")
        total = f"product{tap}" if total is None else f"sum{tap}"
    body.append(f"rows = Reshape ({total}, flat)")
    if bias:
        body.append("biased = Add (rows, b)")
    body.append(f"y = Transpose <perm: ints = [0, 3, 1, 2]> ({'biased' if bias else 'rows'})")
    return ("(x, w, b) => (y)" if bias else "(x, w) => (y)"), body


def _quantize() -> tuple[str, list[str]]:
    body = [
        "scaled = Div (x, scale)",
        "rounded = Round (scaled)",
        _real("lowest", -128.0),
        _real("highest", 127.0),
        "clipped = Clip (rounded, lowest, highest)",
        f"y = Cast <to: int = {onnx.TensorProto.INT8}> (clipped)",
    ]
    return "(x, scale, zero_point) => (y)", body


def _dequantize() -> tuple[str, list[str]]:
    body = [f"codes = Cast <to: int = {onnx.TensorProto.DOUBLE}> (x)", "y = Mul (codes, scale)"]
    return "(x, scale, zero_point) => (y)", body


def _dequantize_rows() -> tuple[str, list[str]]:
    body = [
        f"codes = Cast <to: int = {onnx.TensorProto.DOUBLE}> (x)",
        _integers("as_rows", (0, -1)),
        _integers("last", (1,)),
        "rows = Reshape (codes, as_rows)",
        "column = Unsqueeze (scale, last)",
        "scaled = Mul (rows, column)",
        "shape = Shape (x)",
        "y = Reshape (scaled, shape)",
    ]
    return "(x, scale, zero_point) => (y)", body


def _erf() -> tuple[str, list[str]]:
    """Chebyshev series of erf on [0, 6], within 1e-14; 1 beyond, odd."""
    half, count = _ERF_END / 2, _ERF_DEGREE + 1
    angles = [math.pi * (i + 0.5) / count for i in range(count)]
    values = [math.erf(half * (math.cos(angle) + 1)) for angle in angles]
    series = [
        (2 if degree else 1) / count * math.fsum(v * math.cos(degree * a) for v, a in zip(values, angles, strict=True))
        for degree in range(count)
    ]
    body = [
        _real("half", half),
        _real("end", _ERF_END),
        _real("T0", 1.0),
        _real("two", 2.0),
        "size = Abs (x)",
        "inside = Min (size, end)",
        "share = Div (inside, half)",
        "T1 = Sub (share, T0)",
        "twice = Mul (T1, two)",
        _real("sum0", series[0]),
    ]
    for degree, value in enumerate(series[1:], 1):
        if degree > 1:
            body += [
                f"raised{degree} = Mul (twice, T{degree - 1})",
                f"T{degree} = Sub (raised{degree}, T{degree - 2})",
            ]
        body += [
            _real(f"c{degree}", value),
            f"part{degree} = Mul (c{degree}, T{degree})",
            f"sum{degree} = Add (sum{degree - 1}, part{degree})",
        ]
    body += ["sign = Sign (x)", f"y = Mul (sum{len(series) - 1}, sign)"]
    return "(x) => (y)", body


_BODIES = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DequantizeLinear_rows": _dequantize_rows,
    "Erf": _erf,
}
