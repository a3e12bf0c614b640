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

from .affine import GRANULARITY, AffineQuantizer
from .lsq import INITIAL_FLOOR, SCALE_FLOOR
from .ste import positive, scale_grad

SAMPLES = 4096  # values per group that the search looks at
CUTS = 16  # positions tried for each end of the interval


class LSQPlus(AffineQuantizer):
    """Uniform quantizer with learned step and (activations) offset; see the module docstring.

    Args:
        granularity: ``tensor`` or ``channel``.
    """

    options: ClassVar = {"granularity": GRANULARITY}

    def __init__(
        self,
        bits: int,
        *,
        role: str = "act",
        channels: int | None = None,
        channel_dim: int | None = None,
        name: str = "",
        copies: int = 1,
        granularity: str = "tensor",
    ) -> None:
        super().__init__(
            bits,
            role=role,
            channels=channels,
            channel_dim=channel_dim,
            name=name,
            copies=copies,
            granularity=granularity,
        )
        self.scale = nn.Parameter(torch.ones(self.groups))
        if role != "weight":
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
        scale = scale_grad(positive(self.scale, SCALE_FLOOR), factor)
        return scale, None if weight else self.qmin * scale - scale_grad(self.offset, factor)

    def parameter_health(self) -> dict[str, float]:
        report = {"scale": self.scale.detach().abs().mean().item()}
        return report if self.role == "weight" else report | {"beta": self.offset.detach().mean().item()}


def best_interval(rows: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """Ends of the interval whose uniform grid has the least squared error on each row.

    Args:
        rows: (G, M).
        intervals: number of grid steps between the ends.

    Returns:
        Lower and upper ends, (G,) each: the best pair of ``CUTS`` x ``CUTS`` between the row's mean and its
        extremes, judged on at most ``SAMPLES`` evenly spaced values.
    """
    low, high = rows.aminmax(dim=1)
    mean = rows.mean(1)
    share = torch.linspace(1, 0.1, CUTS, device=rows.device, dtype=rows.dtype)
    some = rows[:, :: -(-rows.shape[1] // SAMPLES)]
    unit = torch.maximum(low.abs(), high.abs()).clamp_min(torch.finfo(rows.dtype).tiny)
    best = torch.full_like(low, torch.inf)
    ends = [low, high]
    for a in share:
        lower = mean + (low - mean) * a
        upper = mean[:, None] + (high - mean)[:, None] * share
        step = ((upper - lower[:, None]) / intervals).clamp_min(1e-12)[:, :, None]
        level = ((some - lower[:, None])[:, None] / step).round().clamp(0, intervals)
        # in units of the largest magnitude, so that an outlier's square does not overflow
        error = ((level * step + lower[:, None, None] - some[:, None]) / unit[:, None, None]).square().mean(2)
        least, which = error.min(1)
        better = least < best
        best = torch.where(better, least, best)
        ends = [
            torch.where(better, new, old)
            for new, old in zip((lower, upper.gather(1, which[:, None])[:, 0]), ends, strict=True)
        ]
    return ends[0], ends[1]
