"""The scan in an exported graph: one node, which the writer of the file turns into a ``Scan`` graph or leaves to a plugin.

The node has the inputs of ``ss2d_scan`` and the attributes ``directions`` (codes) and ``delta_softplus``.
"""

from __future__ import annotations

import torch

from ..backend import ExportTarget
from ..onnx_nodes import DOMAIN, cast, onnx_node
from ..permutation import inverted

SCAN_NODE = "SS2DScan"
_ROW = 0  # direction code


def scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
    directions: list[int],
    order: torch.Tensor | None,
    merge: bool,
    target: ExportTarget,
) -> torch.Tensor:
    """See ``ss2d_scan``.

    In an FP16 network standard operators scan in FP32 all the same; the plugin takes FP16 feature maps and keeps its
    state in FP32. Named directions over one map, outputs summed, are one node. Everything else is one node per
    direction, over the map brought into its order.
    """
    state = torch.float64 if target.maps == torch.float64 else torch.float32
    count, channels = A.shape[:2]
    D = x.new_zeros(count, channels, dtype=state) if D is None else D
    delta_bias = x.new_zeros(count, channels, dtype=state) if delta_bias is None else delta_bias
    softplus = int(delta_softplus)
    if order is None and merge and x.dim() == 4:
        return _node((x, delta, A, B, C, D, delta_bias), directions, softplus, target)
    outputs = []
    for k in range(count):
        maps = (x if x.dim() == 4 else x[:, :, :, k], *(t[:, :, :, k] for t in (delta, B, C)))
        if order is not None:
            path = order[k].long()
            maps = (t.flatten(1, 2).index_select(1, path).unsqueeze(1) for t in maps)  # (B, 1, H W, C)
        u, dt, b, c = maps
        weights = (t[k : k + 1] for t in (D, delta_bias))
        tensors = (u, dt.unsqueeze(3), A[k : k + 1], b.unsqueeze(3), c.unsqueeze(3), *weights)
        y = _node(tensors, [_ROW] if order is not None else directions[k : k + 1], softplus, target)
        if order is not None:
            y = y.squeeze(1).index_select(1, inverted(path)).unflatten(1, x.shape[1:3])
        outputs.append(y)
    return torch.stack(outputs).sum(0) if merge else torch.stack(outputs, 3)


def _node(
    tensors: tuple[torch.Tensor, ...], directions: list[int], softplus: int, target: ExportTarget
) -> torch.Tensor:
    """One node; the tensors are x (B, H, W, D), delta, A, B, C, D, delta_bias."""
    state = torch.float64 if target.maps == torch.float64 else torch.float32
    maps = target.maps if target.plugin else state
    kinds = (maps, maps, state, maps, maps, state, state)
    inputs = tuple(cast(t, kind) for t, kind in zip(tensors, kinds, strict=True))
    attributes = {"directions": directions, "delta_softplus": softplus}
    shape = tensors[0].shape
    return cast(onnx_node(f"{DOMAIN}::{SCAN_NODE}", inputs, maps, shape, attributes, version=1), target.maps)
