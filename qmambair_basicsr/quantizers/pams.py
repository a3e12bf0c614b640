"""PAMS: parameterized max scale, a super-resolution QAT baseline.

Li et al., "PAMS: Quantized Super-Resolution via Parameterized Max Scale", ECCV 2020.

==========  ============================================================  ====================
paper       meaning                                                       here
==========  ============================================================  ====================
alpha       learned upper bound of |activation| (eq. 3)                   ``alpha`` (1,)
s(n)        (2^(n-1) - 1) / alpha (eq. 2)                                 1 / ``to_int(...)[1]``
x_q         round(clip(x, -alpha, alpha) * s(n)) / s(n)                   ``forward(...)``
==========  ============================================================  ====================

Activations learn alpha: gradient +1 / -1 where clipped, round(v) - v over 2^(n-1) - 1 inside, no gradient scale.
Weights use max|w| of the tensor at hand, without gradient through it and without parameters. Codes are
symmetric, -(2^(n-1)-1)..2^(n-1)-1.

The authors leave activations unclipped during epoch 1 while alpha follows the batch mean of the per-sample
maxima (EMA, 0.9997). That phase is calibration here: alpha starts at the mean of the same quantity over the
calibration batches. Their distillation of attention maps (SKT) is a loss, not part of the quantizer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.limits import limited
from .affine import AffineQuantizer
from .lsq import INITIAL_FLOOR, SCALE_FLOOR
from .registry import register_quantizer
from .site import ACTIVATION, Site
from .ste import positive


@register_quantizer
class PAMS(AffineQuantizer):
    """Symmetric quantizer with a learned bound (activations) or the tensor's own (weights)."""

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
    ) -> None:
        super().__init__(bits, site)
        self.qmin = -self.qmax
        self.dynamic = self.role == "weight"
        if self.role != "weight":
            self.alpha = nn.Parameter(torch.ones(1))

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        if self.role == "weight":
            return {}
        samples = x.reshape(x.shape[0] if self.role == "act" else 1, -1)
        return {"alpha": samples.abs().amax(1).mean().clamp_min(INITIAL_FLOOR)}

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, None]:
        alpha = self._constant(limited(x.abs().amax()).reshape(1)) if self.role == "weight" else self.alpha
        return positive(alpha, SCALE_FLOOR) / self.qmax, None

    def parameter_health(self) -> dict[str, float]:
        return {} if self.role == "weight" else {"alpha": self.alpha.detach().item()}
