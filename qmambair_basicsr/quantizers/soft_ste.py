"""SoftSTE: LSQ with soft rounding in the backward pass, the "soft STE (tanh)" of Q-MambaIR's Table 7b.

The rounding is the one of QuantSR (Qin et al., NeurIPS 2023, section 3.2).

==========  ===================================================================  ====================
symbol      meaning                                                              here
==========  ===================================================================  ====================
s           step size, learned                                                   ``scale``
phi(v)      floor(v) + 1/2 + tanh(f - 1/2) / (2 tanh 1/2), f = v - floor(v)      ``ste.soft_round``
==========  ===================================================================  ====================

Forward: exactly LSQ. Backward: the derivative of phi stands in for the rounding's, 0.851 at integers and 1.082
half-way between, and reaches s as well: round(v) - v phi'(v) inside. Start, gradient scale, signed flag and the
guard of the step as in ``lsq.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.limits import as_type
from .lsq import LSQ
from .registry import register_quantizer
from .ste import snap, soft_round


@register_quantizer
class SoftSTE(LSQ):
    """LSQ whose rounding has the slope of a tanh curve; see the module docstring.

    Args:
        granularity: ``tensor``, ``channel`` or a group of channels.
    """

    def quantize(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # only the gradient is not LSQ's: evaluation takes its kernel
            return as_type(super().quantize(self._entering(x)), x.dtype)
        curve, scale, zero = self.curve(x)
        return as_type((snap(curve, self._rounded(x)) - zero) * scale, x.dtype)

    @torch.no_grad()
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().to_int(self._entering(x))

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        curve, scale, zero = super().curve(self._entering(x))
        return soft_round(curve), scale, zero

    @torch.no_grad()
    def _rounded(self, x: Tensor) -> Tensor:
        x = self._entering(x)
        scale, offset = (None if p is None else p.to(x.dtype) for p in self.step_and_offset(x))
        return self._codes(x, scale, offset)

    def _entering(self, x: Tensor) -> Tensor:
        """The full-precision curve that is quantized in place of ``x``."""
        return self._full(x)
