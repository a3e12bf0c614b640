"""Ranges of the quantizers of a network: what most methods choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..calibration import Sample, SampleObserver, collect
from ..layers.sites import PlacedSite, network_sites
from ..quantizers.minmax import MinMax
from ..quantizers.spec import SpecError

SAMPLES = 65_536


def quantized_sites(net: nn.Module, method: str, others: Sequence[type] = ()) -> list[PlacedSite]:
    """Every quantized site of a network, whose quantizers must be MinMax: a method sets their bounds.

    Args:
        net: made by ``prepare``.
        method: its name, for messages.
        others: further kinds of quantizers that the method knows.

    Raises:
        SpecError: another kind, named with its place.
    """
    found = [placed for placed in network_sites(net) if placed.quantizer.bits != 32]
    for placed in found:
        if not isinstance(placed.quantizer, (MinMax, *others)):
            kinds = " or ".join(kind.__name__ for kind in (MinMax, *others))
            raise SpecError(
                f"{method} sets the bounds of {kinds}, but {placed.site.label} has {type(placed.quantizer).__name__}; "
                f"write type: MinMax under quant: {placed.site.kind}"
            )
    return found


def rows_of(quantizer: MinMax, x: Tensor) -> Tensor:
    """View of a tensor as (groups, values): one row for each pair of bounds."""
    return quantizer._rows(x.detach())


def samples_of(
    net: nn.Module,
    batches: Sequence[Tensor],
    sites: Sequence[PlacedSite],
    count: int = SAMPLES,
    quantized: bool = False,
) -> dict[str, Sample]:
    """Label -> values seen at some sites computed from the input, one row for each pair of bounds of its quantizer.

    Args:
        net: network.
        batches: images.
        sites: which.
        count: values kept of each row, spread over all; 0 keeps all.
        quantized: see ``calibration.collect``.
    """
    wanted = {placed.site.label for placed in sites}
    if not wanted:
        return {}

    each = -(-count // len(batches))

    def make(placed: PlacedSite) -> SampleObserver | None:
        return SampleObserver(each, placed.quantizer.dim) if placed.site.label in wanted else None

    return collect(net, batches, {"*": make}, quantized=quantized)


@torch.no_grad()
def set_ranges(
    net: nn.Module,
    batches: Sequence[Tensor],
    sites: Sequence[PlacedSite],
    choose: Callable[[PlacedSite, Sample], tuple[Tensor, Tensor]],
    count: int = SAMPLES,
) -> None:
    """Set the bounds of MinMax quantizers from what passes in full precision.

    Args:
        net: network.
        batches: images.
        sites: those to set.
        choose: site and its values -> lower and upper bounds, one for each row. Parameters are given whole.
        count: see :func:`samples_of`.
    """
    seen = samples_of(net, batches, [p for p in sites if p.site.parameter is None], count)
    for placed in sites:
        quantizer = placed.quantizer
        sample = seen.get(placed.site.label)
        if sample is None:
            rows = rows_of(quantizer, placed.tensor())
            sample = Sample(rows, *rows.aminmax(dim=1))
        lower, upper = choose(placed, sample)
        quantizer.set_bounds(lower, upper)
