"""The projections of a selective scan in an integer network, see ``lowering``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.convert import FrozenCodes
from ..layers.sites import SiteModule, transform_of
from ..lowering.grids import StaticGrid, grid_of
from ..lowering.layers import IntegerLinear, entering


class IntegerProjections(nn.Module):
    """``ScanParameters.project`` with products of integer codes.

    Args:
        sizes: K directions, rank R of delta, state size N.
        owner: whose projections they are, weights frozen.
        parts: names of the projection of the map, and of that of delta.
        apart: each direction projects a map of its own.

    Raises:
        LoweringError: a transform acts behind a quantizer.
    """

    def __init__(self, sizes: tuple[int, int, int], owner: SiteModule, parts: tuple[str, str], apart: bool):
        super().__init__()
        self.sizes, self.apart, quantizers = sizes, apart, owner.quantizers
        first, second = parts
        self.x_proj_transform = entering(transform_of(owner, first))
        self.dt_projs_transform = entering(transform_of(owner, second))
        weight, act = quantizers[f"{first}_weight"], grid_of(quantizers[f"{first}_input"], True, True)
        self.x_proj = DirectionProducts(weight, act) if apart else IntegerLinear(weight.flattened(), act, None)
        self.dt_projs = DirectionProducts(
            quantizers[f"{second}_weight"], grid_of(quantizers[f"{second}_input"], True, True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``ScanParameters.project``."""
        k, r, n = self.sizes
        x = x if self.x_proj_transform is None else self.x_proj_transform.enter(x)
        projected = self.x_proj(x)
        projected = projected if self.apart else projected.unflatten(-1, (k, r + 2 * n))
        dt, b, c = projected.split((r, n, n), dim=-1)
        dt = dt if self.dt_projs_transform is None else self.dt_projs_transform.enter(dt)
        return self.dt_projs(dt), b, c


class DirectionProducts(nn.ModuleList):
    """One linear layer of codes for each direction, (..., K, C) -> (..., K, O), on one grid.

    Args:
        weight: frozen codes (K, O, C).
        act: grid of the input.
    """

    def __init__(self, weight: FrozenCodes, act: nn.Module):
        count = weight.codes.shape[0]
        if isinstance(act, StaticGrid):
            act.slices = count
        super().__init__(IntegerLinear(weight.part(k), act, None, k) for k in range(count))

    def forward(self, x: Tensor) -> Tensor:
        act = self[0].act
        if isinstance(act, StaticGrid):
            # apart, so that in an exported graph each product reads a Q/DQ pair of its own
            return torch.stack([layer(x[..., i, :]) for i, layer in enumerate(self)], dim=-2)
        q = act(x)  # statistics are those of all directions together
        parts = [x[..., i, :] if q is x else q.select(-2, i) for i in range(len(self))]
        return torch.stack([p.multiply(t) for p, t in zip(self, parts, strict=True)], dim=-2)
