"""The projections of a selective scan in an integer network, see ``lowering``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.sites import SiteModule, transform_of
from ..lowering.grids import StaticGrid, grid_of
from ..lowering.layers import IntegerLinear, entering


class IntegerProjections(nn.Module):
    """``ScanParameters.project`` with products of integer codes.

    Args:
        sizes: K directions, rank R of delta, state size N.
        owner: whose projections they are, weights frozen.

    Raises:
        LoweringError: a transform acts behind a quantizer.
    """

    def __init__(self, sizes: tuple[int, int, int], owner: SiteModule):
        super().__init__()
        self.sizes, quantizers = sizes, owner.quantizers
        for part in ("x_proj", "dt_projs"):
            self.register_module(f"{part}_transform", entering(transform_of(owner, part)))
        joined, apart = (quantizers[f"{name}_weight"] for name in ("x_proj", "dt_projs"))
        self.x_proj = IntegerLinear(joined.flattened(), grid_of(quantizers["x_proj_input"], True), None)
        act = grid_of(quantizers["dt_projs_input"], True)
        if isinstance(act, StaticGrid):
            act.slices = sizes[0]
        self.dt_projs = nn.ModuleList(IntegerLinear(apart.part(k), act, None, k) for k in range(sizes[0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``ScanParameters.project``."""
        k, r, n = self.sizes
        x = x if self.x_proj_transform is None else self.x_proj_transform.enter(x)
        dt, b, c = self.x_proj(x).unflatten(-1, (k, r + 2 * n)).split((r, n, n), dim=-1)
        dt = dt if self.dt_projs_transform is None else self.dt_projs_transform.enter(dt)
        act = self.dt_projs[0].act
        if isinstance(act, StaticGrid):
            # apart, so that in an exported graph each product reads a Q/DQ pair of its own
            return torch.stack([layer(dt[..., i, :]) for i, layer in enumerate(self.dt_projs)], dim=-2), b, c
        q = act(dt)  # statistics are those of all directions together
        parts = [dt[..., i, :] if q is dt else q.select(-2, i) for i in range(k)]
        return torch.stack([p.multiply(t) for p, t in zip(self.dt_projs, parts, strict=True)], dim=-2), b, c
