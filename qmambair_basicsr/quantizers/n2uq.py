"""N2UQ: non-uniform input thresholds, uniform output levels (also called NU2U).

Liu et al., "Nonuniform-to-Uniform Quantization: Towards Accurate Quantization via Generalized Straight-Through
Estimation", CVPR 2022.

==========  =====================================================================  ==========================
paper       meaning                                                                here
==========  =====================================================================  ==========================
a_i         length of input interval i, learned, positive (eq. 8)                  ``gaps`` (2^n - 1,)
T_i         thresholds: t_0 + a_1 + ... + a_{i-1} + a_i / 2                        midpoints of ``nodes()``
t_0         start of the first interval, learned                                   ``start`` (1,)
G-STE       backward slope 1 / a_i in interval i, 0 outside (eq. 9)                ``curve``
==========  =====================================================================  ==========================

Here the transform works on LSQ-normalised values, in units of the learned step (``scale``), so that it can be put
on any tensor and set against RFA under equal conditions (Q-MambaIR, Table 7b): ordered intervals with zero slope
outside against free thresholds with slope 0.1 outside. At the start t_0 = 2^(n-1) steps below zero (0 for
never-negative data) and all a_i = 1, which is LSQ. Gaps are used as max(|a_i|, 1e-3).

The paper's own scale factors (scale1, scale2, both 1 at the start) are replaced by the step, and its weight
quantizer (per-filter mean|w|, clip to +-1, uniform) by the same transform.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.limits import limited
from .curve import CurveQuantizer
from .lsq import LSQ
from .registry import register_quantizer
from .site import ACTIVATION, Site
from .ste import positive

MIN_GAP = 1e-3


@register_quantizer
class N2UQ(CurveQuantizer, LSQ):
    """LSQ with learned input intervals; see the module docstring.

    Args:
        granularity: of the step, ``tensor`` or ``channel``; the intervals are shared.
    """

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        granularity: str = "tensor",
    ) -> None:
        super().__init__(bits, site, granularity=granularity)
        self.start = nn.Parameter(torch.full((1,), float(self.qmin)))
        self.gaps = nn.Parameter(torch.ones(self.qmax - self.qmin))

    def nodes(self) -> Tensor:
        """Ends of the input intervals, (2^n,), ascending, in steps; the code at node i is ``qmin + i``."""
        return torch.cat((self.start, self.start + positive(self.gaps, MIN_GAP).cumsum(0)))

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = limited(self._full(x))
        scale, offset = self.step_and_offset(x)
        scale = self._spread(scale, x)
        zero = x.new_zeros(()) if offset is None else self._spread(offset, x) / scale
        v = (x if offset is None else x + self._spread(offset, x)) / scale
        nodes = self.nodes().to(v.dtype)
        left = (torch.bucketize(v.detach().contiguous(), nodes.detach()) - 1).clamp(0, nodes.numel() - 2)
        within = (v - nodes[left]) / (nodes[left + 1] - nodes[left])
        return left + within.clamp(0, 1) + self.qmin, scale, zero

    def static_form(self) -> None:
        """None: the intervals differ in length."""

    def parameter_health(self) -> dict[str, float]:
        return super().parameter_health() | {"gap_min": self.gaps.detach().abs().min().item()}
