"""Nodes of an ONNX graph as torch functions, for the ONNX forms of operators (``ops/<op>/onnx.py``).

A function of this file can only run while torch's exporter traces. Needs no package besides torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OPSET = 18
DOMAIN = "qmambair"
"""Domain of nodes that no standard has."""
FLOAT64_DOMAIN = "qmambair.float64"
"""Domain of standard operators in a precision that the standard lacks; the file defines them."""


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; where there is nothing to do, nothing is traced either: a cast costs two operations each."""
    return x if x.dtype == dtype else x.to(dtype)


def onnx_node(
    op: str,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    shape: Sequence[int],
    attributes: dict | None = None,
    version: int = OPSET,
) -> Tensor:
    """One node with one output.

    Args:
        op: operator of the standard, or ``domain::operator``.
        inputs: its inputs.
        dtype, shape: of the output.
        attributes: name -> value.
        version: of the operator's domain.
    """
    return torch.onnx.ops.symbolic(op, inputs, attributes or {}, dtype=dtype, shape=shape, version=version)
