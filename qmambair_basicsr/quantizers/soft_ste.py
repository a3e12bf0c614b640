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

from .curve import CurveQuantizer
from .lsq import LSQ
from .ste import soft_round


class SoftSTE(CurveQuantizer, LSQ):
    """LSQ whose rounding has the slope of a tanh curve; see the module docstring.

    Args:
        granularity: ``tensor`` or ``channel``.
    """

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self._full(x)
        scale, offset = self.step_and_offset(x)
        scale = self._spread(scale, x)
        zero = x.new_zeros(()) if offset is None else self._spread(offset, x) / scale
        shifted = x if offset is None else x + self._spread(offset, x)
        return soft_round(torch.clamp(shifted / scale, self.qmin, self.qmax)), scale, zero
