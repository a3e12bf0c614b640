"""DoReFa: tanh-normalised weights and activations of fixed range.

Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients", 2016.

=============  ====================================================================  ====================
paper          meaning                                                               here
=============  ====================================================================  ====================
quantize_k     round((2^k - 1) r) / (2^k - 1) for r in [0, 1] (eq. 5)                codes
f_w^k          2 quantize_k(tanh(w) / (2 max|tanh w|) + 1/2) - 1 (eq. 9)             weights, k > 1
f_w^1          sign(w) * mean|w| (eq. 8)                                             weights, k = 1
f_a^k          quantize_k(clip(x, 0, 1)) (eq. 11)                                    activations
=============  ====================================================================  ====================

As published, weights of k > 1 bits fill [-1, 1] whatever their size and activations are taken to lie in [0, 1],
which needs batch normalisation and bounded activations; restoration networks have neither. ``rescale: true``
(default) therefore multiplies the weight grid by max|w| (a constant for the gradient) and maps the calibrated
[min, max] of the activations, over all batches, onto [0, 1]. ``rescale: false`` is the published quantizer.

Gradients: straight-through rounding, through tanh and its maximum; f_w^1 passes the gradient unchanged.
Codes are stored moved by -2^(k-1), as signed integers; ``zero`` of weights is -1/2, half-way between two codes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..ops.limits import limited
from .curve import CurveQuantizer
from .forms import StaticForm
from .registry import register_quantizer
from .site import ACTIVATION, Site
from .spec import Option

TINY = 1e-12  # a smaller largest weight counts as none: all weights are next to 0, and so are their gradients


@register_quantizer
class DoReFa(CurveQuantizer):
    """DoReFa-Net's quantizers; see the module docstring.

    Args:
        rescale: keep the size of weights and the range of activations.
    """

    bit_widths = tuple(range(1, 9))
    fixed_range = True
    options: ClassVar = {"rescale": Option(True, "keep the data's range (false: as published)", choices=(False, True))}

    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        rescale: bool = True,
    ) -> None:
        super().__init__(bits, site)
        self.rescale = rescale
        self.extremes = {"lower": torch.minimum, "upper": torch.maximum} if rescale else {}
        self.dynamic = self.role == "weight"
        if self.role != "weight":
            self.register_buffer("lower", torch.zeros(1))
            self.register_buffer("upper", torch.ones(1))

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        if self.role == "weight" or not self.rescale:
            return {}
        low, high = x.aminmax()
        return {"lower": low, "upper": high}

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = limited(self._full(x))
        return self._weight(x) if self.role == "weight" else self._activation(x)

    def codes(self, curve: Tensor) -> Tensor:
        if self.bits == 1 and self.role == "weight":  # the sign of w
            return torch.floor(curve).clamp(self.qmin, self.qmax)
        return torch.round(curve)

    @torch.no_grad()
    def static_form(self) -> StaticForm | None:
        if self.role == "weight":
            return None
        _, step, zero = self._activation(self.lower)
        return StaticForm(step, zero * step, self.qmin, self.qmax)

    def _weight(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = torch.full((), -0.5, dtype=w.dtype, device=w.device)
        if self.bits == 1:
            scale = 2 * self._constant(w.abs().mean()).clamp_min(TINY)
            return w / scale, scale, half
        squashed = torch.tanh(w)
        largest = squashed.abs().max()
        unit = squashed / (2 * torch.where(largest < TINY, 1.0, largest)) + 0.5
        intervals = self.qmax - self.qmin
        size = self._constant(w.abs().max()).clamp_min(TINY) if self.rescale else torch.ones_like(half)
        return unit * intervals + self.qmin, 2 * size / intervals, half

    def _activation(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        intervals = self.qmax - self.qmin
        low, high = self.lower.reshape(()).to(x.dtype), self.upper.reshape(()).to(x.dtype)
        floor = 1e-6 * torch.maximum(low.abs(), high.abs()) + TINY
        scale = torch.maximum(high - low, floor) / intervals
        offset = self.qmin * scale - low
        return torch.clamp((x + offset) / scale, self.qmin, self.qmax), scale, offset / scale
