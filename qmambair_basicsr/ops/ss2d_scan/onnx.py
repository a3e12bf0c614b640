"""The scan in an exported graph: one node, which the writer of the file turns into a ``Scan`` graph or leaves to a plugin.

The node has the inputs of ``ss2d_scan`` and the attributes ``directions`` (codes) and ``delta_softplus``.
"""

from __future__ import annotations

import torch

from ..backend import BackendError, ExportTarget
from ..onnx_nodes import DOMAIN, cast, onnx_node

SCAN_NODE = "SS2DScan"


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
    target: ExportTarget,
) -> torch.Tensor:
    """See ``ss2d_scan``.

    In an FP16 network standard operators scan in FP32 all the same; the plugin takes FP16 feature maps and keeps its
    state in FP32.

    Raises:
        BackendError: a form of the scan that the node does not have.
    """
    if x.dim() != 4:
        raise BackendError("ss2d_scan: maps of their own for each direction have no ONNX form")
    state = torch.float64 if target.maps == torch.float64 else torch.float32
    maps = target.maps if target.plugin else state
    count, channels = A.shape[:2]
    D = x.new_zeros(count, channels, dtype=state) if D is None else D
    delta_bias = x.new_zeros(count, channels, dtype=state) if delta_bias is None else delta_bias
    kinds = (maps, maps, state, maps, maps, state, state)
    inputs = tuple(cast(t, kind) for t, kind in zip((x, delta, A, B, C, D, delta_bias), kinds, strict=True))
    attributes = {"directions": directions, "delta_softplus": int(delta_softplus)}
    return cast(onnx_node(f"{DOMAIN}::{SCAN_NODE}", inputs, maps, x.shape, attributes, version=1), target.maps)
