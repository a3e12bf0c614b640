"""A post-training method in one file: smooth, merge, and set ranges to percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..calibration import MinMaxObserver, PercentileObserver, collect
from ..layers.merging import inner_sources, merge
from ..layers.sites import network_sites
from ..layers.transforms import Smoothing, attach
from ..quantizers.spec import Option
from .method import PTQMethod, register_method


@register_method
class ToySmooth(PTQMethod):
    """s = max|x|^a / max|w|^(1 - a) for each channel whose input another part computes; then percentiles of everything."""

    options: ClassVar = {
        "alpha": Option(0.5, "share of the activation in the smoothing scales", low=0, high=1),
        "percent": Option(99.9, "percentile of the ranges of activations", low=50, high=100),
    }

    def apply(self, net: nn.Module, batches: Sequence[Tensor]) -> None:
        alpha, percent = self.settings["alpha"], self.settings["percent"]
        sources = inner_sources(net)
        ranges = collect(net, batches, {place: lambda site: MinMaxObserver(dim=-1) for place in sources})

        def largest(label: str) -> Tensor:
            low, high = ranges[label]
            return torch.maximum(low.abs(), high.abs()).clamp_min(1e-3)

        attach(
            net,
            {
                place: Smoothing(largest(f"{place}.act") ** alpha / largest(f"{place}.weight") ** (1 - alpha))
                for place in sources
            },
        )
        merge(net, sources)
        ends = collect(net, batches, {"*": lambda site: PercentileObserver(100 - percent, percent)})
        for placed in network_sites(net):
            parameter = placed.site.parameter is not None
            placed.quantizer.init_from(placed.tensor() if parameter else torch.cat(ends[placed.site.label]))
