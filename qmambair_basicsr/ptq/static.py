"""Methods that choose everything from statistics: change the network, set ranges, round the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..calibration import Sample
from ..layers.sites import PlacedSite
from ..quantizers.spec import Option
from .bias_correction import correct_biases
from .gptq import gptq_network
from .method import PTQMethod
from .ranges import SAMPLES, quantized_sites, set_ranges
from .training import full_precision

COMMON = {
    "weights": Option("nearest", "how weights are rounded", choices=("nearest", "gptq")),
    "bias_correction": Option(False, "take the mean error of each channel off the bias", choices=(False, True)),
    "samples": Option(SAMPLES, "values of a tensor that searches look at; 0: all", low=0, high=1e9),
}

MAPS = {
    "map_percent": Option(
        100.0, "upper percentile of attention maps, which the networks of the paper do not have", low=50, high=100
    )
}


class StaticMethod(PTQMethod):
    """Base class: a subclass says how the network is changed first (:meth:`transform`) and what a range is (:meth:`choose`)."""

    options: ClassVar = COMMON

    def apply(self, net: nn.Module, batches: Sequence[Tensor]) -> None:
        name = type(self).__name__
        quantized_sites(net, name)
        self.transform(net, batches)
        corrected = self.settings["bias_correction"]
        full = full_precision(net) if corrected else None
        sites = quantized_sites(net, name)
        self.observe(net, batches, sites)
        set_ranges(net, batches, sites, self._chosen, int(self.settings["samples"]))
        if self.settings["weights"] == "gptq":
            gptq_network(net, batches)
        if corrected:
            correct_biases(net, full, batches)

    def transform(self, net: nn.Module, batches: Sequence[Tensor]) -> None:
        """Change parameters so that the network returns the same and is easier to quantize; merged when it returns.

        Only the inputs of places within :meth:`reaches`. Arguments as :meth:`apply`.
        """

    def observe(self, net: nn.Module, batches: Sequence[Tensor], sites: Sequence[PlacedSite]) -> None:
        """Collect further statistics for :meth:`choose`."""

    def _chosen(self, placed: PlacedSite, sample: Sample) -> tuple[Tensor, Tensor]:
        percent = self.settings.get("map_percent", 100)
        if percent < 100 and placed.site.part == "map":
            return sample.low, sample.quantiles(percent / 100)[0]
        return self.choose(placed, sample)

    def choose(self, placed: PlacedSite, sample: Sample) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of a site, one for each row of the sample."""
        raise NotImplementedError


def symmetric(placed: PlacedSite, sample: Sample, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds +-largest of a symmetric quantizer; of another one, the ends of the data no further out than that.

    Two bits and less need the levels that a symmetric grid spends on values which do not occur.
    """
    if placed.quantizer.symmetric:
        return -largest, largest
    return torch.maximum(sample.low, -largest), torch.minimum(sample.high, largest)
