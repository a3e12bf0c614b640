"""Percentile: ranges of activations leave out a share of the values at both ends; weights keep theirs.

McKinstry et al., 2018, and the usual second reference beside MinMax. The share is of a sample of ``samples`` values.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..calibration import Sample
from ..layers.sites import PlacedSite
from ..quantizers.spec import Option
from .method import register_method
from .static import COMMON, StaticMethod


@register_method
class Percentile(StaticMethod):
    """Two percentiles of each activation."""

    options: ClassVar = {**COMMON, "percent": Option(99.9, "upper one; 100 minus it is the lower", low=50, high=100)}

    def choose(self, placed: PlacedSite, sample: Sample) -> tuple[Tensor, Tensor]:
        if placed.site.parameter is not None:
            return sample.low, sample.high
        share = self.settings["percent"] / 100
        ends = sample.quantiles(1 - share, share)
        return (sample.low, sample.high) if share == 1 else (ends[0], ends[1])
