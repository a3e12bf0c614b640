"""Arithmetic of tensors on grids: integer codes, exact sums of their products, one factor at the end.

A tensor on a grid is :class:`Codes`. With codes q, step s and shift o its value is ``s q - o``. Products and sums here
are those of the part ``s q``; what the shifts add is a matter of the caller, who knows which of it is constant
(``lowering/layers.py``). The operators run in plain PyTorch on any device, and exactly: float32 holds integers up to
2^24, float64 up to 2^53, and the narrower type that holds a sum whatever the codes are carries it.

In an exported graph the same calls become QuantizeLinear and DequantizeLinear around a floating-point operator, the form
that runtimes turn into integer kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..backend import choose

BACKENDS = ("native", "reference")


class Codes(NamedTuple):
    """A tensor on a grid; only the operators of this package look inside.

    Attributes:
        data: int8 codes; in an exported graph their products with the step.
        step: broadcastable to ``data``, > 0; None where an exported graph needs none.
        shift: broadcastable to ``data``; None for 0, and for what is computed in floating point in an exported graph.
        bound: no code is larger in magnitude.
        static: the grid is constant, and one for the whole tensor.
    """

    data: Tensor
    step: Tensor | None
    shift: Tensor | None
    bound: int
    static: bool = False

    def select(self, dim: int, index: int) -> Codes:
        """The codes at one index of a dimension, along which step and shift are one for all."""
        step, shift = (t if t is None or t.ndim == 0 else t.select(dim, 0) for t in (self.step, self.shift))
        return self._replace(data=self.data.select(dim, index), step=step, shift=shift)


def quantize(
    x: Tensor,
    step: Tensor,
    shift: Tensor | None,
    limits: tuple[Tensor, Tensor] | None,
    zero_point: Tensor,
    bound: int,
) -> Codes:
    """Codes ``round(clamp(x + shift, limits) / step)`` of a constant grid.

    Args:
        x: any shape.
        step, shift: one for all, or broadcastable to x; shift None for 0.
        limits: lowest and highest code times step; None for those of int8.
        zero_point: int8 zero of the shape of step, for the exported node.
        bound: largest magnitude of a code, at most 128.
    """
    return _form(x).quantize(x, step, shift, limits, zero_point, bound)


def quantize_rows(x: Tensor, grid: Callable[[Tensor], Tensor], per_sample: bool, bound: int) -> Codes:
    """Codes on a grid that follows the statistics of the tensor (DLS).

    Args:
        x: any shape.
        grid: statistics (G, 4), mean, unbiased standard deviation, minimum and maximum of G groups -> step, offset,
            lowest and highest code, (G, 4).
        per_sample: every index of dimension 0 is a group; otherwise the whole tensor is.
        bound: largest magnitude of a code, at most 128.
    """
    return _form(x).quantize_rows(x, grid, per_sample, bound)


def constant(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, bound: int) -> Codes:
    """Stored int8 codes, with one scale for all or (``axis``) one along a dimension; no shift."""
    return _form(scale).constant(codes, scale, zero_point, axis, bound)


def dequantize(x: Codes | Tensor) -> Tensor:
    """The value; a tensor that is on no grid is its own."""
    return x if isinstance(x, Tensor) else _form(x.data).dequantize(x)


def linear(x: Codes | Tensor, weight: Codes) -> Tensor:
    """x (..., I) times weight (O, I) -> (..., O), shifts left out of it."""
    return _form(weight.data).linear(x, weight)


def conv2d(
    x: Codes | Tensor, weight: Codes, bias: Tensor | None, geometry: tuple[tuple, tuple, tuple], groups: int
) -> Tensor:
    """Convolution of x (B, C, H, W) with weight (O, C / groups, kH, kW), plus bias (O,), shifts left out of it.

    Args:
        geometry: stride, padding (of code 0) and dilation.
        groups: groups of channels.
    """
    return _form(weight.data).conv2d(x, weight, bias, geometry, groups)


def matmul(a: Codes, b: Codes) -> Tensor:
    """``a @ b``, shifts left out of it; one step along the dimension that is summed over."""
    return _form(a.data).matmul(a, b)


def total(x: Codes, dim: int) -> Tensor:
    """Sum along a dimension, which stays with length 1; shifts left out of it."""
    return _form(x.data).total(x, dim)


def _form(x: Tensor):
    return choose("integer", BACKENDS, x)
