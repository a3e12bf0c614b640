"""Arithmetic on codes on the C++ kernels of ``kernels/cpu``: the sums of ``reference.py`` and the same float32 results.

What the kernels do not take (float64, a step per channel where codes are looked up only, operands on no grid) goes to
the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..dls.reference import statistics
from ..native_library import is_available
from . import Codes, kernels, reference
from .kernels import MOST_TAPS, IntegerLayer, Rows, pack
from .reference import constant, dequantize, total

__all__ = [
    "DEVICES",
    "constant",
    "conv2d",
    "dequantize",
    "is_available",
    "linear",
    "matmul",
    "quantize",
    "quantize_rows",
    "total",
]

DEVICES = ("cpu",)

# tensor of weights -> (what its layer was made with, the layer)
_layers = WeakIdKeyDictionary()


def quantize(
    x: Tensor,
    step: Tensor,
    shift: Tensor | None,
    limits: tuple[Tensor, Tensor] | None,
    zero_point: Tensor,
    bound: int,
) -> Codes:
    """See ``integer.quantize``."""
    known = step.dtype == x.dtype == torch.float32 and step.numel() == 1 and _readable(x)
    if not known or not x.numel() or not _dense(x):
        return reference.quantize(x, step, shift, limits, zero_point, bound)
    if shift is not None and shift.numel() > 1:  # the kernel takes one
        return quantize(x + shift, step, None, limits, zero_point, bound)._replace(shift=shift)
    data = kernels.quantize(x, _grid(step, shift, limits), 128, signed=True)
    return Codes(data, step, shift, bound, True)


def quantize_rows(x: Tensor, grid: Callable[[Tensor], Tensor], per_sample: bool, bound: int) -> Codes:
    """See ``integer.quantize_rows``."""
    if x.dtype != torch.float32 or not _readable(x) or not x.numel():
        return reference.quantize_rows(x, grid, per_sample, bound)
    x = x.contiguous()
    rows = x.view(x.shape[0] if per_sample else 1, -1)
    used = grid(statistics(rows)).to(torch.float32).contiguous()
    data = torch.empty_like(x, dtype=torch.int8)
    for row, codes, each in zip(rows, data.view(rows.shape), used, strict=True):
        kernels.quantize(row, each, 128, codes, signed=True)
    step, shift = (t.view(-1, *[1] * (x.ndim - 1)) if t.numel() > 1 else t.reshape(()) for t in used.unbind(1)[:2])
    return Codes(data, step, shift, bound)


def linear(x: Codes | Tensor, weight: Codes) -> Tensor:
    """See ``integer.linear``."""
    grid = _usable(x, weight)
    if grid is None:
        return reference.linear(x, weight)
    layer = _layer(weight, x.bound, ((1, 1), (0, 0), (1, 1)), 1, None)
    if layer is None:
        return reference.linear(x, weight)
    rows = x.data.contiguous().view(-1, x.data.shape[-1])
    return layer(Rows(rows, grid, x.bound)).view(*x.data.shape[:-1], -1)


def conv2d(x: Codes | Tensor, weight: Codes, bias: Tensor | None, geometry: tuple, groups: int) -> Tensor:
    """See ``integer.conv2d``."""
    grid = _usable(x, weight)
    numbers = all(isinstance(part, tuple) for part in geometry) and max(weight.data.shape[2:]) <= MOST_TAPS
    if grid is None or not numbers or x.data.ndim != 4:
        return reference.conv2d(x, weight, bias, geometry, groups)
    layer = _layer(weight, x.bound, geometry, groups, bias)
    if layer is None:
        return reference.conv2d(x, weight, bias, geometry, groups)
    batch, channels, height, width = x.data.shape
    rows = x.data.permute(0, 2, 3, 1)
    last = rows.is_contiguous()
    y = layer(Rows(rows.contiguous().view(-1, channels), grid, x.bound), (batch, height, width))
    size = (height, width) if layer.is_linear else layer.size(height, width)
    y = y.view(batch, *size, -1).permute(0, 3, 1, 2)
    return y if last else y.contiguous()


def matmul(a: Codes, b: Codes) -> Tensor:
    """See ``integer.matmul``."""
    single = all(isinstance(t, Codes) and t.step.numel() == 1 for t in (a, b))
    if not single or a.data.ndim < 2 or b.data.ndim < 2 or _usable(a, b) is None or not b.data.numel():
        return reference.matmul(a, b)
    if 2 * a.bound * b.bound * a.data.shape[-1] > 2**30 or a.data.shape[-1] > 2**16:
        return reference.matmul(a, b)
    lead = torch.broadcast_shapes(a.data.shape[:-2], b.data.shape[:-2])
    left, right = (t.data.expand(*lead, *t.data.shape[-2:]).flatten(0, -3) if lead else t.data[None] for t in (a, b))
    left = left if left.stride(-1) == 1 else left.contiguous()
    operands = (Rows(t.unsqueeze(0), _plain_grid(c.step), c.bound) for t, c in ((left, a), (right, b)))
    y = kernels.product(*operands, shifted=False)
    return y.view(*lead, *y.shape[-2:])


def _usable(x: Codes | Tensor, weight: Codes) -> Tensor | None:
    """The grids (G, 4) of an input whose products with a weight the kernels can sum up; None if they cannot."""
    if not isinstance(x, Codes) or not isinstance(weight, Codes) or not _readable(x.data) or not x.data.numel():
        return None
    if x.step.dtype != torch.float32 or weight.step.dtype != torch.float32 or not weight.data.numel():
        return None
    if x.step.numel() > 1 and not x.step.numel() == x.step.shape[0] == len(x.data):  # one for each sample
        return None
    return _plain_grid(x.step)


def _plain_grid(step: Tensor) -> Tensor:
    """Grids without shift, for codes that are there."""
    grid = torch.zeros(step.numel(), 4)
    grid[:, 0] = step.flatten()
    return grid


def _grid(step: Tensor, shift: Tensor | None, limits: tuple[Tensor, Tensor] | None) -> Tensor:
    """The grid (4,) of a constant grid."""
    parts = [torch.zeros_like(step) if shift is None else shift]
    codes = [torch.full_like(step, code) for code in (-128, 127)] if limits is None else [t / step for t in limits]
    parts += [code.round() for code in codes]
    return torch.stack([t.reshape(()) for t in (step, *parts)])


def _layer(weight: Codes, zero: int, geometry: tuple, groups: int, bias: Tensor | None) -> IntegerLayer | None:
    """The packed layer, made when a weight is first met; None where the kernels do not take it."""
    made_with = zero, geometry, groups, *(_state(t) for t in (weight.data, weight.step, bias))
    kept = _layers.get(weight.data)
    if kept is not None and kept[0] == made_with:
        return kept[1]
    stride, padding, dilation = geometry
    try:
        packed = pack(weight.data, zero, groups=groups)
        scale = weight.step.flatten()
        layer = IntegerLayer(packed, scale, bias=bias, stride=stride, padding=padding, dilation=dilation)
    except ValueError:
        layer = None
    if not any(t is not None and t.is_inference() for t in (weight.data, weight.step, bias)):
        _layers[weight.data] = made_with, layer
    return layer


def _state(t: Tensor | None) -> tuple | None:
    """Changes when a tensor is written to or another takes its place; inference tensors do not count their writes."""
    return None if t is None or t.is_inference() else (t.data_ptr(), t._version, t.shape)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _readable(x: Tensor) -> bool:
    return not (torch.compiler.is_compiling() or torch._subclasses.fake_tensor.is_fake(x))
