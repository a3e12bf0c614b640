"""Values that an operator never hands out, rounded to a grid inside: states of a scan, probabilities of attention."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import code_bounds


class Rounding(NamedTuple):
    """A grid: a value h becomes ``(clamp(round((h + offset) / scale), qmin, qmax) - offset / scale) * scale``.

    Gradients are those of ``ops.lsq``, and where there are bounds those of ``quantizers.ste.on_bounds``: a value exactly
    on a bound sends its gradient to itself and to the bound.

    Attributes:
        scale: (1,), > 0.
        offset: (1,); None for 0.
        qmin, qmax: smallest and largest code.
        lower, upper: (1,); both or neither.
    """

    scale: Tensor
    offset: Tensor | None
    qmin: int
    qmax: int
    lower: Tensor | None = None
    upper: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """scale, offset, lower and upper."""
        return self.scale, self.offset, self.lower, self.upper

    def to(self, dtype: torch.dtype) -> Rounding:
        """With tensors of a type, attached to the graph."""
        scale, offset, lower, upper = (t if t is None else t.to(dtype) for t in self.tensors)
        return Rounding(scale, offset, self.qmin, self.qmax, lower, upper)

    def check(self, op: str, x: Tensor) -> None:
        """Raise ValueError unless an operator on x can round by this.

        Args:
            op: operator, for the message.
            x: its main input.
        """
        code_bounds(op, self.qmin, self.qmax)
        if (self.lower is None) != (self.upper is None):
            raise ValueError(f"{op}: a rounding has both bounds or neither")
        for name, t in zip(("scale", "offset", "lower", "upper"), self.tensors, strict=True):
            if t is not None and t.numel() != 1:
                raise ValueError(f"{op}: {name} of the rounding must be one value, got shape {tuple(t.shape)}")
            if t is not None and t.device != x.device:
                raise ValueError(f"{op}: {name} of the rounding is on {t.device}, not on {x.device}")

    def numbers(self) -> ctypes.Array:
        """The grid as the C++ kernels take it (``Rounding`` in kernels/cpu/rounding.h)."""
        nan = float("nan")
        scale, offset, lower, upper = (nan if t is None else t.item() for t in self.tensors)
        return (ctypes.c_float * 6)(scale, 0 if self.offset is None else offset, self.qmin, self.qmax, lower, upper)

    def gradients(self, parts: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of :attr:`tensors` from those of the tasks of a kernel, (tasks, 4); None where there is no tensor."""
        from .native_library import add_in_order  # not before kernels run: the package loads without their library

        sums = add_in_order(parts)
        pairs = zip(self.tensors, sums, strict=True)
        return tuple(None if t is None else grad.reshape(t.shape).to(t.dtype) for t, grad in pairs)
