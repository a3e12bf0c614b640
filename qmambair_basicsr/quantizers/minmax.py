"""MinMax: uniform quantizer between two bounds, the naive baseline and the quantizer of 2DQuant and SPR2Q.

Liu et al., "2DQuant", NeurIPS 2024, eq. 1; gradients to the bounds as SPR2Q eq. 8.

=========  =======================================================  ==============================
paper      meaning                                                  here
=========  =======================================================  ==============================
l, u       bounds                                                   ``lower``, ``upper``
s          (u - l) / (2^n - 1)                                      ``to_int(...)[1]``
x_q        round((clip(x, l, u) - l) / s) * s + l                   ``forward(...)``
=========  =======================================================  ==============================

l and u start as minimum and maximum of all calibration batches. ``learnable: false`` (default)
freezes them; ``true`` trains both through dx_q/du = [x > u] + (k - (c-l)/s) / (2^n-1) and
dx_q/dl = [x < l] - (k - (c-l)/s) / (2^n-1), with c the clipped value and k its level: what autograd gives for
the formula with a straight-through rounding. ``symmetric: true`` uses l = -m, u = m with m the largest
magnitude, and the codes -(2^(n-1)-1)..2^(n-1)-1, so that 0 is a level (2 bits and more).

Codes are signed: the lowest level is code -2^(n-1). One bit gives the two levels l and u. An interval of
zero length (a constant tensor) is widened to 1e-6 of its magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops.rounding import Rounding
from .affine import AffineQuantizer
from .groups import GRANULARITY
from .registry import register_quantizer
from .site import ACTIVATION, Site
from .spec import Option, SpecError


@register_quantizer
class MinMax(AffineQuantizer):
    """Uniform quantizer between two bounds; see the module docstring.

    Args:
        granularity: ``tensor``, ``channel`` or a group of channels.
        symmetric: symmetric bounds about zero.
        learnable: train the bounds.

    Raises:
        SpecError: symmetric at 1 bit; per channel where the site has no channels.
    """

    bit_widths = tuple(range(1, 9))
    options: ClassVar = {
        "granularity": GRANULARITY,
        "symmetric": Option(False, "bounds symmetric about zero", choices=(False, True)),
        "learnable": Option(False, "train the bounds", choices=(False, True)),
    }
    extremes: ClassVar = {"lower": torch.minimum, "upper": torch.maximum}

    @classmethod
    def impossible(cls, bits: int, options: Mapping[str, Any]) -> str | None:
        alone = bits == 1 and options.get("symmetric", False)
        return "one symmetric bit has the single level 0; use symmetric: false" if alone else None

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        granularity: str = "tensor",
        symmetric: bool = False,
        learnable: bool = False,
    ) -> None:
        super().__init__(bits, site, granularity=granularity)
        if why := self.impossible(bits, {"symmetric": symmetric}):
            raise SpecError(f"{self._label()}: {why}")
        self.symmetric = symmetric
        if symmetric:
            self.qmin = -self.qmax
        self.lower = nn.Parameter(-torch.ones(self.groups), requires_grad=learnable)
        self.upper = nn.Parameter(torch.ones(self.groups), requires_grad=learnable)

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        lower, upper = self._rows(x).aminmax(dim=1)
        if self.symmetric:
            upper = torch.maximum(upper, -lower)
            lower = -upper
        return {"lower": lower, "upper": upper}

    @torch.no_grad()
    def set_bounds(self, lower: Tensor, upper: Tensor) -> None:
        """Set both bounds, (groups,) or one value for all; symmetric quantizers take the larger magnitude.

        Raises:
            ValueError: NaN or infinity.
        """
        if not bool(torch.isfinite(lower).all() and torch.isfinite(upper).all()):
            raise ValueError(f"{self._label()}: bounds must be finite")
        if self.symmetric:
            upper = torch.maximum(upper.abs(), lower.abs())
            lower = -upper
        self.lower.copy_(lower.reshape(-1).expand(self.groups))
        self.upper.copy_(upper.reshape(-1).expand(self.groups))
        self.observed.fill_(1)
        self.initialized.fill_(True)
        self._ready = True

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        lower, upper = self.lower, self.upper
        floor = 1e-6 * torch.maximum(lower.detach().abs(), upper.detach().abs()) + 1e-12
        scale = torch.maximum(upper - lower, floor) / (self.qmax - self.qmin)
        return scale, None if self.symmetric else self.qmin * scale - lower

    def rounding(self) -> Rounding | None:
        if self.dim is not None or self.cut is not None:
            return None
        return Rounding(*self.step_and_offset(self.lower), self.qmin, self.qmax)

    def parameter_health(self) -> dict[str, float]:
        return {"lower": self.lower.detach().min().item(), "upper": self.upper.detach().max().item()}
