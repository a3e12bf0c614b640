"""A quantizer in one file: symmetric, step from the mean magnitude, one step per channel as an option."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .affine import GRANULARITY, AffineQuantizer
from .registry import register_quantizer
from .site import ACTIVATION, Site
from .ste import positive


@register_quantizer
class ToyMean(AffineQuantizer):
    """Step 4 mean|x| / 2^n, learned."""

    options: ClassVar = {"granularity": GRANULARITY}

    def __init__(self, bits: int, site: Site = ACTIVATION, *, granularity: str = "tensor") -> None:
        super().__init__(bits, site, granularity=granularity)
        self.step = nn.Parameter(torch.ones(self.groups))

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        return {"step": 4 * self._rows(x).abs().mean(1) / 2**self.bits}

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, None]:
        return positive(self.step, 1e-8), None
