"""SEQ: stretched elastic quantization of weights, whose levels lie at half-integers.

Liu et al., "ParetoQ: Improving Scaling Laws in Extremely Low-bit LLM Quantization", NeurIPS 2025, section 3.3.

=============  =====================================================================  ======================
paper          meaning                                                                here
=============  =====================================================================  ======================
alpha          half of the range, learned; for each output channel                    ``alpha``
k              number of levels, 2^n
W_Q            alpha (round(clip(W / alpha, -1, 1) k / 2 - 1/2) + 1/2) 2 / k           ``forward(...)``
=============  =====================================================================  ======================

At 2 bits the levels are +-1/4 and +-3/4 of alpha: all four are used evenly and none is wasted on one side, but there is no
exact zero. In units of the step s = 2 alpha / k a code is round(w / s - 1/2), its value (code + 1/2) s, so an integer
product has the offset of half a step (``zero`` = -1/2) and no more.

Gradient to W: 1 for |W| < alpha, which is half a step beyond the outermost level, else 0. To alpha: (W_Q - W) / alpha
inside, the outermost level in units of alpha outside; times LSQ's gradient scale. The release cuts at 0.99 alpha instead
of alpha so that rounding stays in range; here codes are clamped.

The release starts alpha at max |W| for 2 bits (``search: none``). ``search: mse`` (default) starts at the multiple of the mean
magnitude that has the least squared error. alpha is used as max(|alpha|, 1e-8), see ``lsq.py``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ops.limits import as_type, limited
from .affine import AffineQuantizer
from .groups import GRANULARITY
from .lsq import INITIAL_FLOOR, SCALE_FLOOR
from .registry import register_quantizer
from .search import best_symmetric_step
from .site import WEIGHT, Site
from .spec import Option
from .ste import learned_step, snap


@register_quantizer
class SEQ(AffineQuantizer):
    """Weight quantizer with levels at half-integers; see the module docstring.

    Args:
        granularity: ``tensor``, ``channel`` (paper) or a group of channels.
        search: ``mse`` or ``none``, how it starts.

    Raises:
        SpecError: per channel or group where the site has no channels.
    """

    roles: ClassVar = ("weight",)
    options: ClassVar = {
        "granularity": GRANULARITY,
        "search": Option("mse", "fit the start to the weight, or take its largest magnitude", choices=("mse", "none")),
    }

    def __init__(self, bits: int, site: Site = WEIGHT, *, granularity: str = "tensor", search: str = "mse") -> None:
        super().__init__(bits, site, granularity=granularity)
        self.search = search
        self.half = 2.0 ** (bits - 1)  # alpha in steps
        self.alpha = nn.Parameter(torch.ones(self.groups))

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        rows = self._full(self._rows(x))
        if self.search == "none":
            return {"alpha": rows.abs().amax(1).clamp_min(INITIAL_FLOOR)}
        start = (2 * rows.abs().mean(1) / self.half**0.5).clamp_min(INITIAL_FLOOR)
        return {"alpha": best_symmetric_step(rows, start, self.qmin, self.qmax, 0.5) * self.half}

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = (x.numel() * self.copies / self.groups * self.qmax) ** -0.5
        step = learned_step(self.alpha, SCALE_FLOOR, factor) / self.half
        return step, -0.5 * step

    def quantize(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # only the gradient differs: evaluation takes the kernel
            return super().quantize(x)
        full = self._full(x)
        curve, step, zero = self.curve(full)
        with torch.no_grad():
            codes = self._codes(full, *(p.to(full.dtype) for p in self.step_and_offset(full)))
        return as_type((snap(curve, codes) - zero) * step, x.dtype)

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = limited(self._full(x))
        step = self._spread(self.step_and_offset(x)[0], x)
        return torch.clamp(x / step - 0.5, self.qmin - 0.5, self.qmax + 0.5), step, torch.full_like(step, -0.5)

    def parameter_health(self) -> dict[str, float]:
        return {"alpha": self.alpha.detach().abs().mean().item()}
