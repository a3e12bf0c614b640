"""MinMax: the range of every tensor is that of the calibration images; the naive reference of all methods."""

from __future__ import annotations

from torch import Tensor

from ..calibration import Sample
from ..layers.sites import PlacedSite
from .method import register_method
from .static import StaticMethod


@register_method
class MinMax(StaticMethod):
    """Smallest and largest value of each tensor, or channel where its quantizer is per channel."""

    def choose(self, placed: PlacedSite, sample: Sample) -> tuple[Tensor, Tensor]:
        return sample.low, sample.high
