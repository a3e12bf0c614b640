"""MambaQuant: rotations by principal axes and smoothing that fuses into the layers around.

Xu et al., "MambaQuant: Quantizing the Mamba Family with Variance Aligned Rotation Methods", ICLR 2025; checked against
xzktx003/mambaquant-master.

============  ==================================================================  ================================
paper         meaning                                                             here
============  ==================================================================  ================================
KLT           K: eigenvectors of the covariance of a layer's input                :func:`aligned_rotation`
K H           rotation that gives all channels the same variance                  x -> x K H
s             sqrt(max|x| / max|w|), at least 1e-2                                ``smoothing.smoothing_scales``
============  ==================================================================  ================================

Ranges: weights min-max (per channel in their code: ``granularity: channel``), activations the percentile .999999, static.

On MambaIR: the residual stream cannot be rotated, as LayerNorm and a skip scale for each channel are in the way, so K H is
used where a linear computes the input, x_proj in front of dt_projs. The release multiplies these rows from the wrong side
(x -> K H x), which decorrelates nothing: ``orientation: released`` does that, ``correct`` gives equal variances. Their
covariance is of one batch, here of all. Smoothing is folded wherever a module can take a factor: they divide rows of the
gate and use a SiLU of its own for that; here the norm in front of the gate takes 1 / s, which is the same and needs no other
SiLU. Scaling B and C in the scan by the repository's way changes the recurrence and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..calibration import Sample
from ..layers.hadamard import rotation
from ..layers.merging import inner_sources, input_sources, merge
from ..layers.sites import PlacedSite
from ..layers.transforms import Rotation, Smoothing, attach, places
from ..quantizers.spec import Option
from .gptq import input_grams
from .method import register_method, require_no_transforms
from .smoothing import scales_of
from .static import COMMON, MAPS, StaticMethod
from .training import SEED


def principal_axes(covariance: Tensor) -> Tensor:
    """K: eigenvectors of a covariance in the order of ascending eigenvalues, as columns, (C, C) or (K, C, C)."""
    return torch.linalg.eigh(covariance.double())[1]


def aligned_rotation(covariance: Tensor, hadamard: Tensor) -> Tensor:
    """K H, (C, C): ``x K H`` has the same variance in every channel where H is a Hadamard matrix over its root."""
    return principal_axes(covariance) @ hadamard.to(covariance.device)


@register_method
class MambaQuant(StaticMethod):
    """KLT-enhanced rotation and smooth-fused factors; see the module docstring."""

    options: ClassVar = {
        **COMMON,
        **MAPS,
        "orientation": Option("correct", "side from which dt_projs' input is rotated", choices=("correct", "released")),
        "smooth": Option(True, "smoothing", choices=(True, False)),
        "percentile": Option(0.999999, "of activations", low=0.5, high=1),
        "seed": SEED,
    }

    def transform(self, net: nn.Module, batches: Sequence[Tensor]) -> None:
        require_no_transforms(net, self)
        if self.settings["smooth"]:
            sources = {name: source for name, source in input_sources(net).items() if self.reaches(name)}
            scales = scales_of(net, batches, sources, 0.5, 1e-2)
            attach(net, {name: Smoothing(scale) for name, scale in scales.items()})
            merge(net, sources)
        self._rotate(net, batches)

    def _rotate(self, net: nn.Module, batches: Sequence[Tensor]) -> None:
        sources = {name: source for name, source in inner_sources(net).items() if self.reaches(name)}
        known = places(net)
        if not sources:
            return

        grams = dict(input_grams(net, batches, list(sources)))
        generator = torch.Generator().manual_seed(int(self.settings["seed"]))
        turned = {}
        for name in sources:
            place, gram = known[name], grams[name]
            covariance = gram.gram / gram.count - gram.mean.unsqueeze(-1) * gram.mean.unsqueeze(-2)
            matrix = aligned_rotation(covariance, rotation(place.layout.channels, generator))
            matrix = matrix if self.settings["orientation"] == "released" else matrix.mT
            turned[name] = Rotation(matrix.to(place.weight.dtype))
        attach(net, turned)
        merge(net, sources)

    def choose(self, placed: PlacedSite, sample: Sample) -> tuple[Tensor, Tensor]:
        if placed.site.parameter is not None:
            return sample.low, sample.high
        share = self.settings["percentile"]
        ends = sample.quantiles(1 - share, share)
        return ends[0], ends[1]
