"""Smoothing scales: factors that move the size of channels from an input into the weight that reads it.

SmoothQuant (Xiao et al., ICML 2023); PTQ4VM and MambaQuant use the same with their own floors. ``s = max|x|^a /
max|w|^(1 - a)`` for each input channel, then x / s and W s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..calibration import MinMaxObserver, collect
from ..layers.merging import Source
from ..layers.transforms import Place, places


def smoothing_scales(largest: Tensor, weight_largest: Tensor, alpha: float = 0.5, floor: float = 1e-3) -> Tensor:
    """s of each channel, (C,).

    Args:
        largest: max|x|, (C,); raised to ``floor``.
        weight_largest: max|w|, (C,); raised to 1e-5 (a column of zeros has no say).
        alpha: share of the input.
        floor: smallest max|x| and s.
    """
    return (largest.clamp_min(floor) ** alpha / weight_largest.clamp_min(1e-5) ** (1 - alpha)).clamp_min(floor)


def column_magnitudes(place: Place) -> Tensor:
    """Largest |w| that multiplies each input channel, (C,)."""
    layout, weight = place.layout, place.weight.detach().abs()
    dim = layout.weight_dim % weight.ndim
    if layout.groups == 1:
        return weight.movedim(dim, 0).flatten(1).amax(1)
    grouped = weight.unflatten(0, (layout.groups, -1)).movedim(dim + 1, 1).flatten(2)  # (G, C / G, ...)
    return grouped.amax(2).flatten()


def scales_of(
    net: nn.Module, batches: Sequence[Tensor], sources: Mapping[str, Source], alpha: float, floor: float
) -> dict[str, Tensor]:
    """Name of a place -> s, (C,), for the products whose inputs can take a factor.

    Args:
        net: network.
        batches: calibration images.
        sources: the places, see ``merging.input_sources``.
        alpha, floor: see :func:`smoothing_scales`.
    """
    known = places(net)
    wanted = {f"{name}.act": known[name] for name in sources}

    def make(placed):
        place = wanted.get(placed.site.label)
        return None if place is None else MinMaxObserver(place.layout.dim)

    if not wanted:
        return {}
    ends = collect(net, batches, {"*": make})
    found = {}
    for label, place in wanted.items():
        low, high = ends[label]
        largest = torch.maximum(high, -low)
        found[place.layout.name] = smoothing_scales(largest, column_magnitudes(place), alpha, floor)
    return found
