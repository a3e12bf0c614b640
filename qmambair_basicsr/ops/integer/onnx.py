"""Arithmetic on codes in an exported graph: Q/DQ pairs around floating-point operators.

A tensor travels as the value ``step * code``, shift included, so that every operator reads a DequantizeLinear. A grid
that follows the tensor, and one with a step per channel, are computed in floating point: no runtime has integer kernels
for them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..onnx_nodes import FLOAT64_DOMAIN, cast, onnx_node
from . import Codes


def quantize(
    x: Tensor,
    step: Tensor,
    shift: Tensor | None,
    limits: tuple[Tensor, Tensor] | None,
    zero_point: Tensor,
    bound: int,
) -> Codes:
    """See ``integer.quantize``."""
    x = cast(x, step.dtype)
    if shift is not None:
        x = x + shift
    if step.numel() > 1:
        x = x if limits is None else torch.minimum(torch.maximum(x, limits[0]), limits[1])
        return Codes((x / step).round() * step, step, shift, bound)
    if limits is not None:
        x = onnx_node("Clip", (x, *limits), x.dtype, x.shape)
    codes = onnx_node(_operator("QuantizeLinear", step), (x, step, zero_point), torch.int8, x.shape)
    return Codes(_dequantized(codes, step, zero_point), step, shift, bound, True)


def quantize_rows(x: Tensor, grid: Callable[[Tensor], Tensor], per_sample: bool, bound: int) -> Codes:
    """See ``integer.quantize_rows``; the value comes without shift."""
    rows = x.reshape(x.shape[0] if per_sample else 1, -1)
    low, high = rows.amin(1), rows.amax(1)
    mean = rows.mean(1)
    count = rows.shape[1]
    deviation = ((rows - mean[:, None]).square().sum(1) / (count - 1)).sqrt()
    stats = torch.stack((mean, torch.minimum(deviation, high - low), low, high), dim=1)
    step, offset, lowest, highest = grid(stats).split(1, 1)
    scaled = torch.minimum(torch.maximum((rows + offset) / step, lowest), highest)
    return Codes(((scaled.round() - offset / step) * step).view(x.shape), None, None, bound)


def constant(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, bound: int) -> Codes:
    """See ``integer.constant``."""
    return Codes(_dequantized(codes, scale, zero_point, axis), scale, None, bound)


def dequantize(x: Codes) -> Tensor:
    """See ``integer.dequantize``."""
    return x.data if x.shift is None else x.data - x.shift


def linear(x: Codes | Tensor, weight: Codes) -> Tensor:
    """See ``integer.linear``."""
    if isinstance(x, Codes) and x.static:
        return F.linear(x.data, weight.data)
    # onnxruntime >= 1.25 turns a 2-D DequantizeLinear before MatMul into MatMulNBits, which rounds x to 8 bits
    value = cast(x, weight.data.dtype) if isinstance(x, Tensor) else x.data
    return value @ weight.data.t().unsqueeze(0)


def conv2d(x: Codes | Tensor, weight: Codes, bias: Tensor | None, geometry: tuple, groups: int) -> Tensor:
    """See ``integer.conv2d``."""
    value = cast(x, weight.data.dtype) if isinstance(x, Tensor) else x.data
    return F.conv2d(value, weight.data, bias, *geometry, groups)


def matmul(a: Codes, b: Codes) -> Tensor:
    """See ``integer.matmul``."""
    return a.data @ b.data


def total(x: Codes, dim: int) -> Tensor:
    """See ``integer.total``."""
    return x.data.sum(dim, keepdim=True)


def _operator(op: str, scale: Tensor) -> str:
    """Q/DQ of the standard, or in FP64, which the standard has not, of a function in the file."""
    return op if scale.dtype == torch.float32 else f"{FLOAT64_DOMAIN}::{op}"


def _dequantized(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    attributes = {} if axis is None else {"axis": axis}
    operator = _operator("DequantizeLinear", scale)
    return onnx_node(operator, (codes, scale, zero_point), scale.dtype, codes.shape, attributes)
