"""A selective scan and its projections in an integer network.

The projections multiply codes. What the scan itself reads is on its grids, but the recurrence is floating point.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..archs.ss2d import ScanParameters
from ..layers.convert import FrozenCodes
from ..layers.sites import SiteModule
from .grids import Dequantized, StaticGrid, Unquantized, grid_of
from .layers import IntegerLinear


class Constant(nn.Module):
    """A quantized parameter that takes part in floating-point arithmetic (A, D and dt_bias of the scan)."""

    def __init__(self, value: Tensor):
        super().__init__()
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
                sites[name] = Constant(quantizer.quantize(value))
        self.sites = nn.ModuleDict(sites)

    def forward(self, name: str, tensor: Tensor, source: Tensor | None = None) -> Tensor:
        return self.sites[name](tensor)


class IntegerProjections(nn.Module):
    """``ScanParameters.project`` with integer products."""

    def __init__(self, scan: ScanParameters):
        super().__init__()
        q = scan.quantizers
        self.sizes = len(scan.directions), scan.dt_rank, scan.d_state
        self.x_proj = IntegerLinear(_matrix(q["x_proj_weight"], None), grid_of(q["x_proj_input"], True), None)
        act = grid_of(q["dt_projs_input"], True)
        self.dt_projs = nn.ModuleList(
            IntegerLinear(_matrix(q["dt_projs_weight"], i), act, None) for i in range(self.sizes[0])
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``ScanParameters.project``."""
        k, r, n = self.sizes
        dt, b, c = self.x_proj(x).unflatten(-1, (k, r + 2 * n)).split((r, n, n), dim=-1)
        act = self.dt_projs[0].act
        if isinstance(act, StaticGrid):
            # apart, so that in an exported graph each product reads a Q/DQ pair of its own
            return torch.stack([layer(dt[..., i, :]) for i, layer in enumerate(self.dt_projs)], dim=-2), b, c
        q = act(dt)  # statistics are those of all directions together
        parts = [dt[..., i, :] if q is dt else q.select(-2, i) for i in range(k)]
        return torch.stack([p.multiply(t) for p, t in zip(self.dt_projs, parts, strict=True)], dim=-2), b, c


def lower_sites(owner: SiteModule) -> None:
    """Turn a module with sites of its own, parameters frozen, into its integer form, in place.

    Raises:
        LoweringError: one of its quantizers has none.
    """
    projections = ("x_proj", "dt_projs") if isinstance(owner, ScanParameters) else ()
    integer = all(isinstance(owner.quantizers[f"{name}_weight"], FrozenCodes) for name in projections)
    if projections and integer:
        owner.projections = IntegerProjections(owner)
    owner.register_module("quantizers", LoweredSites(owner, projections if integer else ()))


def _matrix(frozen: FrozenCodes, direction: int | None) -> FrozenCodes:
    """Codes (K, rows, columns) of a raw projection as a matrix: those of one direction, or of all below each other."""

    def cut(t: Tensor) -> Tensor:
        if t.ndim == 0:
            return t
        t = t.expand(*frozen.codes.shape[:2], 1)
        return t.flatten(0, -2) if direction is None else t[direction]

    codes = frozen.codes.flatten(0, 1) if direction is None else frozen.codes[direction]
    matrix = FrozenCodes(frozen.bits, codes, cut(frozen.scale), cut(frozen.zero), None, frozen.site)
    matrix.affine = frozen.affine
    return matrix.to(frozen.scale.dtype)
