"""Arithmetic on codes in plain PyTorch, any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dls.reference import codes as codes_of_rows
from ..dls.reference import statistics
from . import Codes

DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")
_FLOAT32_EXACT = 2**24
_CONVOLVED_EXACT = 2**18
"""A library may convolve by Winograd's transforms, which are no integers: up to this sum their errors round away."""


def is_available() -> tuple[bool, str]:
    """Always: it needs torch only."""
    return True, "plain PyTorch"


def quantize(
    x: Tensor,
    step: Tensor,
    shift: Tensor | None,
    limits: tuple[Tensor, Tensor] | None,
    zero_point: Tensor,
    bound: int,
) -> Codes:
    """See ``integer.quantize``."""
    x = x.to(step.dtype)
    x = x if shift is None else x + shift
    if limits is not None:
        x = torch.minimum(torch.maximum(x, limits[0]), limits[1])
    return Codes((x / step).round_().clamp_(-128, 127).to(torch.int8), step, shift, bound, step.numel() == 1)


def quantize_rows(x: Tensor, grid: Callable[[Tensor], Tensor], per_sample: bool, bound: int) -> Codes:
    """See ``integer.quantize_rows``."""
    rows = x.reshape(x.shape[0] if per_sample else 1, -1)
    used = grid(statistics(rows))
    data = codes_of_rows(rows, used).to(torch.int8).view(x.shape)
    step, shift = (t.view(-1, *[1] * (x.ndim - 1)) if t.numel() > 1 else t.reshape(()) for t in used.unbind(1)[:2])
    return Codes(data, step, shift, bound)


def constant(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, bound: int) -> Codes:
    """See ``integer.constant``."""
    if axis is not None:
        shape = [1] * codes.ndim
        shape[axis] = -1
        scale = scale.view(shape)
    return Codes(codes, scale, None, bound)


def dequantize(x: Codes) -> Tensor:
    """See ``integer.dequantize``; in the order of operations of ``Quantizer.dequantize``."""
    data = x.data.to(x.step.dtype)
    return data * x.step if x.shift is None else (data - x.shift / x.step) * x.step


def linear(x: Codes | Tensor, weight: Codes) -> Tensor:
    """See ``integer.linear``."""
    if isinstance(x, Tensor):
        value = dequantize(weight)
        return F.linear(x.to(value.dtype), value)
    carrier = _carrier(x, weight, weight.data.shape[1], _FLOAT32_EXACT)
    sums = F.linear(x.data.to(carrier), weight.data.to(carrier))
    return sums.to(x.step.dtype) * (x.step * weight.step.flatten())


def conv2d(x: Codes | Tensor, weight: Codes, bias: Tensor | None, geometry: tuple, groups: int) -> Tensor:
    """See ``integer.conv2d``."""
    if isinstance(x, Tensor):
        value = dequantize(weight)
        return F.conv2d(x.to(value.dtype), value, bias, *geometry, groups)
    carrier = _carrier(x, weight, weight.data[0].numel(), _CONVOLVED_EXACT)
    sums = F.conv2d(x.data.to(carrier), weight.data.to(carrier), None, *geometry, groups).round_()
    y = sums.to(x.step.dtype) * (x.step * weight.step.view(1, -1, 1, 1))
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def matmul(a: Codes, b: Codes) -> Tensor:
    """See ``integer.matmul``."""
    carrier = _carrier(a, b, a.data.shape[-1], _FLOAT32_EXACT)
    return (a.data.to(carrier) @ b.data.to(carrier)).to(a.step.dtype) * (a.step * b.step)


def total(x: Codes, dim: int) -> Tensor:
    """See ``integer.total``."""
    return x.data.sum(dim, keepdim=True, dtype=torch.int32).to(x.step.dtype) * x.step


def _carrier(a: Codes, b: Codes, terms: int, exact: int) -> torch.dtype:
    """The type that sums of so many products are computed in without rounding."""
    return torch.float32 if a.bound * b.bound * terms <= exact else torch.float64
