"""Base of quantizers that are written as a continuous curve whose values are rounded to codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.limits import as_type
from .base import Quantizer
from .ste import snap


class CurveQuantizer(Quantizer):
    """A quantizer given by :meth:`curve` alone: codes are its values rounded, gradients are its own.

    For the baselines whose backward is not the plain straight-through one. They need no kernel, so autograd
    differentiates the curve; the output is exact all the same.
    """

    def codes(self, curve: Tensor) -> Tensor:
        """Integer codes of curve values, in floating point; NaN stays NaN."""
        return torch.round(curve)

    def quantize(self, x: Tensor) -> Tensor:
        curve, scale, zero = self.curve(x)
        return as_type((snap(curve, self.codes(curve.detach())) - zero) * scale, x.dtype)

    @torch.no_grad()
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._require_initialized()
        curve, scale, zero = self.curve(x)
        return self.codes(curve).to(torch.int32), scale, zero
