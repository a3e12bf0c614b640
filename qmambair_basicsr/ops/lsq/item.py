"""One tensor of a call of ``lsq``, and how a backend that takes one at a time runs it."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from ..learned import step_gradient, step_in_use


class LSQItem(NamedTuple):
    """Arguments of ``lsq`` for one tensor."""

    x: Tensor
    scale: Tensor
    offset: Tensor | None
    qmin: int
    qmax: int
    dim: int | None = None
    floor: float | None = None
    grad_scale: float = 1.0

    @property
    def grouped(self) -> bool:
        """Whether a parameter varies along ``dim``."""
        return self.scale.numel() > 1 or (self.offset is not None and self.offset.numel() > 1)


def forward_one(module: ModuleType, item: LSQItem) -> Tensor:
    """The quantized tensor, by the ``forward`` of ``reference.py`` or one like it."""
    step = step_in_use(item.scale, item.floor)
    return module.forward(item.x, step, item.offset, item.qmin, item.qmax, item.dim)


def backward_one(module: ModuleType, grad: Tensor, item: LSQItem) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, scale and offset."""
    step = step_in_use(item.scale, item.floor)
    dx, d_step, d_offset = module.backward(grad, item.x, step, item.offset, item.qmin, item.qmax, item.dim)
    return dx, step_gradient(d_step, item.scale, item.floor, item.grad_scale), d_offset
