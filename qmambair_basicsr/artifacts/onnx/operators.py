"""ONNX operators as torch functions that the exporter traces."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.onnx_nodes import FLOAT64_DOMAIN, onnx_node


def _operator(op: str, scale: Tensor) -> str:
    """Q/DQ of the standard, or in FP64, which the standard has not, of ``float64.py``."""
    return op if scale.dtype == torch.float32 else f"{FLOAT64_DOMAIN}::{op}"


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``QuantizeLinear``: int8 codes of x."""
    return onnx_node(_operator("QuantizeLinear", scale), (x, scale, zero_point), torch.int8, x.shape)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """``DequantizeLinear``, with one scale for all or, where ``axis`` is given, one along it."""
    attributes = {} if axis is None else {"axis": axis}
    operator = _operator("DequantizeLinear", scale)
    return onnx_node(operator, (codes, scale, zero_point), scale.dtype, codes.shape, attributes)
