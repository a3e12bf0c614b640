"""Quamba: static symmetric ranges per tensor, a percentile of magnitudes for what the scan reads.

Chiang et al., "Quamba: A Post-Training Quantization Recipe for Selective State Space Models", ICLR 2025; observers checked
against enyac-group/Quamba.

==============================  ==========================================  ==========================================
their site                      range                                       ours
==============================  ==========================================  ==========================================
x, input of scan and x_proj     percentile .9995 of \\|x\\|, moved by .01     ``u``, ``x_proj.act``, and the states ``h``
B, C, dt input                  largest magnitude, one range for all three  ``B``, ``C``, ``dt_projs.act``
everything else, weights        largest magnitude                           all other sites
==============================  ==========================================  ==========================================

On MambaIR: y is taken behind the norm and the gate, in front of out_proj; the four directions share ranges. Their output is
rotated by a Hadamard matrix while the network runs; an ordinary network has no place for it, so here ``rotate: true`` rotates
only where a linear computes the input (the rows of x_proj in front of dt_projs). Their quantizers are symmetric; where the
``quant:`` block has asymmetric ones (needed at 2 bits, where a symmetric grid has three levels) the ends of the data are cut at
the same magnitudes. ``weights: gptq`` is their option for 4 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..calibration import MinMaxObserver, Observer, RunningPercentile, Sample, collect
from ..layers.hadamard import rotation
from ..layers.merging import inner_sources, merge
from ..layers.sites import PlacedSite
from ..layers.transforms import Rotation, attach, places
from ..quantizers.spec import Option
from .method import register_method, require_no_transforms
from .static import COMMON, MAPS, StaticMethod, symmetric
from .training import SEED

SCANNED = ("u", "h", "x_proj")
SHARED = ("B", "C", "dt_projs")


def part_of(placed: PlacedSite) -> str:
    """Part of the owner that a site computed from the input belongs to; empty for weights and parameters."""
    return placed.site.part if placed.site.parameter is None else ""


@register_method
class Quamba(StaticMethod):
    """Percentiles where the scan reads; see the module docstring."""

    options: ClassVar = {
        **COMMON,
        **MAPS,
        "percentile": Option(0.9995, "alpha of the scan's input", low=0.5, high=1),
        "rate": Option(0.01, "sigma: how far a batch moves it", low=0, high=1),
        "rotate": Option(False, "rotate where the rotation can be merged", choices=(False, True)),
        "seed": SEED,
    }

    def transform(self, net: nn.Module, batches: Sequence[Tensor]) -> None:
        if not self.settings["rotate"]:
            return
        require_no_transforms(net, self)
        generator = torch.Generator().manual_seed(int(self.settings["seed"]))
        sources = {name: source for name, source in inner_sources(net).items() if self.reaches(name)}
        known = places(net)
        turned = {place: rotation(known[place].layout.channels, generator) for place in sources}
        attach(net, {place: Rotation(matrix.to(known[place].weight)) for place, matrix in turned.items()})
        merge(net, sources)

    def observe(self, net: nn.Module, batches: Sequence[Tensor], sites: Sequence[PlacedSite]) -> None:
        share, rate = self.settings["percentile"], self.settings["rate"]

        def make(placed: PlacedSite) -> Observer | None:
            if placed.quantizer.bits == 32 or placed.site.parameter is not None:
                return None
            if placed.site.part in SCANNED:
                return RunningPercentile(share, rate)
            return MinMaxObserver() if placed.site.part in SHARED else None

        if not any(part_of(placed) in SCANNED + SHARED for placed in sites):
            self.percentiles, self.together = {}, {}
            return
        seen = collect(net, batches, {"*": make})
        self.percentiles = {label: value for label, value in seen.items() if isinstance(value, Tensor)}
        self.together: dict[str, Tensor] = {}
        for placed in sites:
            if part_of(placed) in SHARED:
                low, high = seen[placed.site.label]
                largest, owner = torch.maximum(high, -low)[0], placed.site.owner
                self.together[owner] = torch.maximum(self.together.get(owner, largest), largest)

    def choose(self, placed: PlacedSite, sample: Sample) -> tuple[Tensor, Tensor]:
        if placed.site.label in self.percentiles:
            largest = self.percentiles[placed.site.label].to(sample.low)
        elif part_of(placed) in SHARED:
            largest = self.together[placed.site.owner]
        else:
            largest = torch.maximum(sample.high, -sample.low)
        return symmetric(placed, sample, largest.clamp_min(1e-5))
