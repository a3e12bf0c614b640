"""LSQPlus: LSQ with a learned offset and asymmetric activations.

Bhalgat et al., "LSQ+: Improving low-bit quantization through learnable offsets and better initialization",
CVPR Workshops 2020.

==========  ==============================================================  ========================
paper       meaning                                                         here
==========  ==============================================================  ========================
s           step size, learned                                              ``scale``
beta        offset of activations, learned                                  ``offset``
x-bar       round(clamp((x - beta) / s, n, p)) (eq. 3)                      ``to_int(...)[0]``
x-hat       x-bar * s + beta (eq. 4)                                        ``forward(...)``
==========  ==============================================================  ========================

Activations: n = 0, p = 2^n - 1 with s and beta learned, gradients 0 / 1 to beta inside / outside (eq. 5-6);
both have LSQ's gradient scale. Codes are stored moved by -2^(n-1), as signed integers. Start: the interval that
minimises the squared error of the batch, searched by shrinking [min, max] at both ends, averaged over the
calibration batches. Weights: symmetric, no offset, start s = max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(n-1)
(eq. 9). The step in use is max(|s|, 1e-8), see ``lsq.py``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .affine import AffineQuantizer
from .groups import GRANULARITY
from .lsq import INITIAL_FLOOR, SCALE_FLOOR
from .registry import register_quantizer
from .search import best_interval
from .site import ACTIVATION, Site
from .ste import learned_step, scale_grad


@register_quantizer
class LSQPlus(AffineQuantizer):
    """Uniform quantizer with learned step and (activations) offset; see the module docstring.

    Args:
        granularity: ``tensor``, ``channel`` or a group of channels.
    """

    options: ClassVar = {"granularity": GRANULARITY}

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        granularity: str = "tensor",
    ) -> None:
        super().__init__(bits, site, granularity=granularity)
        self.scale = nn.Parameter(torch.ones(self.groups))
        if self.role != "weight":
            self.offset = nn.Parameter(torch.zeros(self.groups))

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        rows = self._full(self._rows(x))
        if self.role == "weight":
            spread = 3 * rows.std(1) if rows.shape[1] > 1 else torch.zeros_like(rows[:, 0])
            scale = (rows.mean(1).abs() + spread) / 2 ** (self.bits - 1)
            return {"scale": scale.clamp_min(INITIAL_FLOOR)}
        intervals = self.qmax - self.qmin
        low, high = best_interval(rows, intervals)
        return {"scale": ((high - low) / intervals).clamp_min(INITIAL_FLOOR), "offset": low}

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = self.role == "weight"
        largest = self.qmax if weight else self.qmax - self.qmin
        factor = (x.numel() * self.copies / self.groups * largest) ** -0.5
        scale = learned_step(self.scale, SCALE_FLOOR, factor)
        return scale, None if weight else self.qmin * scale - scale_grad(self.offset, factor)

    def parameter_health(self) -> dict[str, float]:
        report = {"scale": self.scale.detach().abs().mean().item()}
        return report if self.role == "weight" else report | {"beta": self.offset.detach().mean().item()}
