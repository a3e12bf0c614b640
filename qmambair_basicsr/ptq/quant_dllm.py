"""Quant-dLLM: weights as sums of binary orders, fitted to what the calibration images make important (DAQ).

"Quant-dLLM: Post-Training Extreme Low-Bit Quantization for Diffusion Large Language Models". Weights only; as many orders as
bits (``quant: weight: {type: AnyOrder}``).

===========  ====================================================================  ===========================
paper        meaning                                                               here
===========  ====================================================================  ===========================
S            X^T X over the calibration images                                     ``gptq.gram_observer``
D            diag((S + gamma I)^-1)                                                :func:`sensitivity`
Z            (W D^-1)^2                                                            :func:`sensitivity`
Lambda       1, lambda where Z is more than 3 deviations from its mean             :func:`importance`
DAQ          alternating least squares of the scales with Lambda^2, then signs     ``any_order.fit``
ABMP         orders by block: 3 for the top share of sum Z, 1 for the lowest       ``tools.sensitivity``
===========  ====================================================================  ===========================

The paper leaves gamma, lambda, the number of sweeps and the block size open; ours are options: gamma is 0.01 of S's mean
diagonal, lambda 2, 20 sweeps, one block a layer (layers of restoration networks are narrow). Its masked calibration over
diffusion steps has no counterpart: the images are ordinary ones. Convolutions are taken as matrices of their patches, one for
each group; the scan's projections for each direction. Activations get the ranges of the images (MinMax) where they are
quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..calibration import Gram
from ..layers.sites import PlacedSite
from ..layers.transforms import Place, places
from ..quantizers.any_order import AnyOrder, fit
from ..quantizers.spec import Option
from .gptq import input_grams
from .method import PTQMethod, register_method
from .ranges import quantized_sites, set_ranges


def sensitivity(weight: Tensor, gram: Tensor, gamma: float = 0.01) -> Tensor:
    """Z: how much rounding each weight matters, shape of the weight.

    Args:
        weight: (O, C), or (G, O, C) with a gram for each.
        gram: S, (C, C) or (G, C, C).
        gamma: share of its mean diagonal that is added to the diagonal.
    """
    gram = gram.double()
    size = gram.shape[-1]
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)[..., None, None]
    d = torch.linalg.inv(gram + gamma * mean * eye).diagonal(dim1=-2, dim2=-1)
    return (weight.double() / d.unsqueeze(-2)).square()


def importance(z: Tensor, factor: float = 2.0) -> Tensor:
    """Lambda of each weight: ``factor`` for the outliers of Z, 1 for the others."""
    outlier = (z - z.mean()).abs() > 3 * z.std()
    return torch.where(outlier, factor, 1.0)


def matrices_of(place: Place, gram: Gram) -> tuple[Tensor, Tensor]:
    """A weight, as its quantizer gets it, as matrices (G, O, C) with the X^T X of each, (G, C, C)."""
    weight, s = place.weight.detach(), gram.gram
    weight = weight if place.transform is None else place.transform.on_weight(weight).detach()
    parts = weight if weight.ndim == 3 else weight.flatten(1).unflatten(0, (place.layout.groups, -1))
    return parts, s.expand(len(parts), *s.shape[-2:])


@register_method
class QuantDLLM(PTQMethod):
    """Data-aware any-order quantizer; see the module docstring."""

    options: ClassVar = {
        "gamma": Option(0.01, "added to X^T X, in units of its mean diagonal", low=0, high=10),
        "factor": Option(2.0, "lambda: weight of the outliers", low=1, high=100),
        "sweeps": Option(20, "T: rounds of the alternation", low=1, high=1000),
    }

    def apply(self, net: nn.Module, batches: Sequence[Tensor]) -> None:
        sites = quantized_sites(net, type(self).__name__, (AnyOrder,))
        orders = {p.site.name: p for p in sites if isinstance(p.quantizer, AnyOrder) and p.site.operand == "weight"}
        known = places(net)
        grams = dict(input_grams(net, batches, [name for name in orders if name in known]))
        for name, placed in orders.items():
            if name in grams:
                self._fit(placed, *matrices_of(known[name], grams[name]))
            else:
                placed.quantizer.init_from(placed.tensor())
        rest = [p for p in sites if isinstance(p.quantizer, AnyOrder) and p.site.operand != "weight"]
        for placed in rest:
            placed.quantizer.init_from(placed.tensor())
        ranged = [p for p in sites if not isinstance(p.quantizer, AnyOrder)]
        set_ranges(net, batches, ranged, lambda placed, sample: (sample.low, sample.high))

    def _fit(self, placed: PlacedSite, parts: Tensor, grams: Tensor) -> None:
        z = sensitivity(parts, grams, self.settings["gamma"])
        weights = importance(z, self.settings["factor"]).square().to(parts.dtype)
        quantizer = placed.quantizer
        shape = quantizer.matrices(placed.tensor()).shape  # groups of a convolution become rows of one matrix
        made = [
            fit(matrix, quantizer.bits, weight, int(self.settings["sweeps"]))
            for matrix, weight in zip(parts.reshape(shape), weights.reshape(shape), strict=True)
        ]
        rows, columns = (torch.stack(several, 1) for several in zip(*made, strict=True))
        quantizer.set_scales(rows, columns)
