"""Modules whose own tensors are quantized (``SiteModule``) in an integer network.

Products of two tensors on grids become products of codes where the module says how (``lower_products``). Everything else
that passes through a site is on its grid, but what the module computes with it is floating point: the recurrence of a
scan.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.sites import SiteModule
from ..ops.rounding import Rounding
from ..quantizers.together import is_watched
from .grids import Dequantized, StaticGrid, Unquantized, grid_of


class Constant(nn.Module):
    """A quantized parameter that takes part in floating-point arithmetic (A, D and dt_bias of a scan).

    Args:
        value: on the grid.
        site: dotted name of the quantizer that it stands for.
    """

    def __init__(self, value: Tensor, site: str = ""):
        super().__init__()
        self.site = site
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        return self.value.view(x.shape)


class LoweredSites(nn.Module):
    """Takes the place of a module's ``SiteQuantizers``: the same call, values on constant grids.

    Args:
        owner: module whose own tensors are quantized, parameters frozen.
        operations: those of its computations (``Site.operation``) that no longer pass through here.
    """

    def __init__(self, owner: SiteModule, operations: tuple[str, ...] = ()):
        super().__init__()
        sites = {}
        for site in owner.quantization_sites():
            name = site.slot.rpartition(".")[2]
            quantizer = owner.quantizers[name]
            if site.operation in operations:
                continue
            if site.parameter is None:
                sites[name] = Dequantized(grid_of(quantizer, products=False))
            elif quantizer.bits == 32:
                sites[name] = Unquantized()
            else:
                value = site.value_of(getattr(owner, site.parameter))
                sites[name] = Constant(quantizer.quantize(value), quantizer.site.quantizer_path)
        self.sites = nn.ModuleDict(sites)

    def forward(self, name: str, tensor: Tensor, source: Tensor | None = None) -> Tensor:
        return self.sites[name](tensor)

    def rounding(self, name: str) -> Rounding | None:
        """What a site does with a tensor, where that is rounding with one step and nobody watches; else None."""
        site = self.sites[name]
        if not isinstance(site, Dequantized) or is_watched(site) or is_watched(site.grid):
            return None
        return site.grid.rounding() if isinstance(site.grid, StaticGrid) else None


def lower_sites(owner: SiteModule) -> None:
    """Turn a module with sites of its own, parameters frozen, into its integer form, in place.

    Raises:
        LoweringError: one of its quantizers has none.
    """
    owner.register_module("quantizers", LoweredSites(owner, owner.lower_products()))
