"""A quantizer in one file whose grid follows the tensor: codes spread evenly over the range of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer
from .forms import DynamicForm
from .registry import register_quantizer


class _Range(DynamicForm):
    """The rule of ``ToyRange``."""

    def __init__(self, qmin: int, qmax: int):
        super().__init__(per_sample=True)
        self.qmin, self.qmax = qmin, qmax

    def grid(self, statistics: Tensor) -> Tensor:
        low, high = statistics[:, 2], statistics[:, 3]
        step = (high - low).clamp_min(1e-6) / (self.qmax - self.qmin)
        limits = (torch.full_like(step, float(code)) for code in (self.qmin, self.qmax))
        return torch.stack((step, self.qmin * step - low, *limits), 1)


@register_quantizer
class ToyRange(Quantizer):
    """Nothing is learned; straight-through gradients are not the point of a toy."""

    roles = ("act",)
    dynamic = True

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        return {}

    def dynamic_form(self) -> DynamicForm:
        return _Range(self.qmin, self.qmax)

    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._require_initialized()
        x = self._full(x)
        rows = x.detach().reshape(x.shape[0], -1)
        zeros = torch.zeros_like(rows[:, 0])
        stats = torch.stack((zeros, zeros, rows.amin(1), rows.amax(1)), 1)
        step, offset, _, _ = (t.view(-1, *[1] * (x.ndim - 1)) for t in self.dynamic_form().grid(stats).unbind(1))
        return ((x + offset) / step).round().to(torch.int32), step, offset / step

    def quantize(self, x: Tensor) -> Tensor:
        codes, step, zero = self.to_int(x)
        return self.dequantize(codes, step, zero).to(x.dtype)
