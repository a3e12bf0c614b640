"""The selective scan as standard ONNX operators: one ``Scan`` over all directions at once.

Every direction's sequence is brought into its own order first; the body of the ``Scan`` holds the state of all K
directions, (B, K, D, N), and walks ``chunk`` pixels per iteration, unrolled. Padding a sequence with dt = 0 keeps the
state, so any length works. With a = exp(dt A) <= 1 the recurrence cannot overflow. Formula: ``ops/ss2d_scan``.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_BACKWARDS = np.iinfo(np.int64).min + 1
_MOST_LEVELS = 16  # of a grid whose decays the plugin looks up: 4 bits


class _Graph:
    """Nodes and constants under one name prefix."""

    def __init__(self, prefix: str):
        self.prefix, self.nodes, self.constants, self.count = prefix, [], [], 0

    def name(self) -> str:
        self.count += 1
        return f"{self.prefix}_{self.count}"

    def constant(self, values, dtype=np.int64) -> str:
        name = self.name()
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes):
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"{names[0]}_{op}", **attributes))
        return names[0] if outputs == 1 else names


def _body(prefix: str, chunk: int, kind: int) -> onnx.GraphProto:
    """State h (B, K, D, N), dt and dt*x (T, B, K, D), B and C (T, B, K, N), A from outside -> h, y (T, B, K, D)."""
    g = _Graph(f"{prefix}_body")
    state, dt, dtx, b, c = (f"{g.prefix}_{n}" for n in ("h", "dt", "dtx", "b", "c"))
    last, before = g.constant([-1]), g.constant([-2])
    decay = g("Exp", g("Mul", g("Unsqueeze", dt, last), f"{prefix}_A"))  # (T, B, K, D, N)
    drive = g("Mul", g("Unsqueeze", dtx, last), g("Unsqueeze", b, before))
    first = g.constant([0])
    h, states = state, []
    for t in range(chunk):
        index = g.constant(t)
        h = g("Add", g("Mul", g("Gather", decay, index, axis=0), h), g("Gather", drive, index, axis=0))
        states.append(g("Unsqueeze", h, first))
    stacked = states[0] if chunk == 1 else g("Concat", *states, axis=0)
    y = g("Squeeze", g("MatMul", stacked, g("Unsqueeze", c, last)), last)
    final = g("Identity", h)

    def value(name: str, rank: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [None] * rank)

    inputs = [value(state, 4), *(value(name, 4) for name in (dt, dtx, b, c))]
    return helper.make_graph(g.nodes, g.prefix, inputs, [value(final, 4), value(y, 4)], initializer=g.constants)


def expand_scan(
    node: onnx.NodeProto, chunk: int, kind: int = TensorProto.FLOAT
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants that compute what a ``SS2DScan`` node stands for.

    Args:
        node: inputs x, delta, A, B, C, D, delta_bias; attributes ``directions`` and ``delta_softplus``.
        chunk: pixels per iteration, at least 1.
        kind: element type, ``TensorProto.FLOAT`` or ``TensorProto.DOUBLE``.

    Raises:
        ValueError: chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"scan chunk must be at least 1, got {chunk}")
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    directions = list(attributes["directions"])
    x, delta, a, b, c, skip, bias = node.input
    prefix = node.name or node.output[0]
    g = _Graph(prefix)
    one, one_index = g.constant([1]), g.constant([-1])

    def reverse(t: str) -> str:
        """(B, L, C) with L backwards."""
        return g("Slice", t, one_index, g.constant([_BACKWARDS]), one, one_index)

    def sequence(t: str, direction: int) -> str:
        """(B, H, W, C) -> (B, L, C) in the order of the direction."""
        t = g("Transpose", t, perm=[0, 2, 1, 3]) if direction % 2 else t
        shape = g("Shape", t)
        batch, channels = g("Gather", shape, g.constant([0])), g("Gather", shape, g.constant([3]))
        flat = g("Reshape", t, g("Concat", batch, one_index, channels, axis=0))
        return reverse(flat) if direction >= 2 else flat

    def stacked(t: str) -> str:
        """(B, H, W, K, C) -> (L, B, K, C), every direction in its own order."""
        rows = []
        for k, direction in enumerate(directions):
            rows.append(g("Unsqueeze", sequence(g("Gather", t, g.constant(k), axis=3), direction), g.constant([2])))
        joined = rows[0] if len(rows) == 1 else g("Concat", *rows, axis=2)
        return g("Transpose", joined, perm=[1, 0, 2, 3])

    dt = g("Add", delta, bias)  # (B, H, W, K, D) + (K, D)
    dt = g("Softplus", dt) if attributes.get("delta_softplus", 1) else dt
    dtx = g("Mul", dt, g("Unsqueeze", x, g.constant([3])))
    sequences = [stacked(t) for t in (dt, dtx, b, c)]
    length = g("Gather", g("Shape", sequences[0]), g.constant([0]))
    # state of zeros, (B, K, D, N)
    batch = g("Gather", g("Shape", x), g.constant([0]))
    zero = helper.make_tensor("zero", kind, [1], [0.0])
    start = g("ConstantOfShape", g("Concat", batch, g("Shape", a), axis=0), value=zero)
    if chunk > 1:
        size = g.constant([chunk])
        missing = g("Mod", g("Sub", size, g("Mod", length, size)), size)
        pads = g("Concat", g.constant([0] * 4), missing, g.constant([0] * 3), axis=0)
        sequences = [g("Pad", t, pads) for t in sequences]
    blocks = [
        g(
            "Reshape",
            t,
            g("Concat", one_index, g.constant([chunk]), g("Slice", g("Shape", t), one, g.constant([4])), axis=0),
        )
        for t in sequences
    ]
    g.nodes.append(helper.make_node("Identity", [a], [f"{prefix}_A"]))
    _, y = g("Scan", start, *blocks, outputs=2, body=_body(prefix, chunk, kind), num_scan_inputs=4)
    y = g("Reshape", y, g("Concat", one_index, g("Slice", g("Shape", y), g.constant([2]), g.constant([5])), axis=0))
    y = g("Transpose", g("Slice", y, g.constant([0]), length, g.constant([0])), perm=[1, 2, 0, 3])  # (B, K, L, D)
    raster, turned = g("Shape", x), g("Shape", g("Transpose", x, perm=[0, 2, 1, 3]))
    maps = []
    for k, direction in enumerate(directions):
        flat = g("Gather", y, g.constant(k), axis=1)  # (B, L, D)
        if direction >= 2:
            flat = reverse(flat)
        if direction % 2:
            maps.append(g("Transpose", g("Reshape", flat, turned), perm=[0, 2, 1, 3]))
        else:
            maps.append(g("Reshape", flat, raster))
    total = g("Mul", x, g("ReduceSum", skip, g.constant([0]), keepdims=0))
    for index, one_map in enumerate(maps):
        if index + 1 < len(maps):
            total = g("Add", total, one_map)
        else:
            g.nodes.append(helper.make_node("Add", [total, one_map], [node.output[0]], name=f"{prefix}_y"))
    return g.nodes, g.constants


def constant_grid(nodes: dict[str, onnx.NodeProto], constants: dict[str, TensorProto], name: str) -> list[float] | None:
    """The constant grid, ``code * step - shift``, that a tensor lies on, for the plugin's table of decays.

    Args:
        nodes: output -> its node.
        constants: initializers of the graph by name.
        name: the tensor.

    Returns:
        Step, shift, lowest and highest code; None where it lies on no such grid, or on one of more than 16 values.
    """

    def number(name: str) -> float | None:
        value = numpy_helper.to_array(constants[name]) if name in constants else np.empty(0)
        return float(value.reshape(-1)[0]) if value.size == 1 else None

    def found(name: str, *kinds: str) -> onnx.NodeProto | None:
        node = nodes.get(name)
        while node is not None and node.op_type == "Cast":
            node = nodes.get(node.input[0])
        return node if node is not None and node.op_type in kinds else None

    node, shift = found(name, "Sub", "DequantizeLinear"), 0.0
    if node is not None and node.op_type == "Sub":
        shift, node = number(node.input[1]), found(node.input[0], "DequantizeLinear")
    codes = None if node is None else found(node.input[0], "QuantizeLinear")
    clip = None if codes is None else found(codes.input[0], "Clip")
    if clip is None or node.input[1] != codes.input[1]:
        return None
    step, low, high = (number(each) for each in (node.input[1], *clip.input[1:3]))
    zero = number(node.input[2]) if len(node.input) > 2 else 0.0
    if None in (step, low, high, shift) or zero != 0.0 or step <= 0.0:
        return None
    lowest, highest = round(low / step), round(high / step)
    return [step, shift, float(lowest), float(highest)] if highest - lowest < _MOST_LEVELS else None
