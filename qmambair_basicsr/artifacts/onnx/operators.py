"""ONNX operators as torch functions that the exporter traces."""

from __future__ import annotations

import torch
from torch import Tensor

from . import float64
from .float64 import OPSET


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; where there is nothing to do, nothing is traced either: a cast costs two operations each."""
    return x if x.dtype == dtype else x.to(dtype)


def symbolic(op: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, shape, attributes: dict | None = None) -> Tensor:
    """One node of the graph, of an operator with one output of a given type and shape."""
    return torch.onnx.ops.symbolic(op, inputs, attributes or {}, dtype=dtype, shape=shape, version=OPSET)


def _operator(op: str, scale: Tensor) -> str:
    """Q/DQ of the standard, or in FP64, which the standard has not, of ``float64``."""
    return op if scale.dtype == torch.float32 else f"{float64.DOMAIN}::{op}"


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``QuantizeLinear``: int8 codes of x."""
    return symbolic(_operator("QuantizeLinear", scale), (x, scale, zero_point), torch.int8, x.shape)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """``DequantizeLinear``, with one scale for all or, where ``axis`` is given, one along it."""
    attributes = {} if axis is None else {"axis": axis}
    operator = _operator("DequantizeLinear", scale)
    return symbolic(operator, (codes, scale, zero_point), scale.dtype, codes.shape, attributes)
