"""MinMax quantizers while their bounds are trained, with the gradients of 2DQuant's and SPR2Q's releases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..layers.sites import PlacedSite, network_sites
from ..ops.lsq import lsq
from ..ops.rounding import Rounding
from ..quantizers.minmax import MinMax
from ..quantizers.ste import on_bounds

Grid = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Lower and upper bound, step and offset."""

SPLIT = ("wqkv", "qkv")
"""Linears that compute queries, keys and values together; the releases quantize them as three."""


def parts_of(placed: PlacedSite) -> int:
    """Matrices that the releases would quantize by themselves, whose rows are stacked at a site; 1 for most."""
    quantizer = placed.quantizer
    joined = placed.site.operand == "weight" and placed.site.name.rpartition(".")[2] in SPLIT
    return 3 if joined and quantizer.groups > 1 and quantizer.groups % 3 == 0 else 1


class TrainedBounds(MinMax):
    """Stands in for a MinMax quantizer while its bounds are trained.

    Differences: an element exactly on a bound sends its gradient to the bound as well; a lower bound above the upper one
    gives the constant ``upper``; channels may share bounds.

    Args:
        base: what it stands in for.
        parts: rows of a weight in so many equal parts with one pair of bounds each; 1: as ``base``.
    """

    def __init__(self, base: MinMax, parts: int = 1) -> None:
        granularity = "tensor" if base.dim is None else "channel"
        super().__init__(base.bits, base.site, granularity=granularity, symmetric=base.symmetric, learnable=True)
        self.learnable = base.lower.requires_grad
        self._lent: Grid | None = None
        self.shared = self.groups // parts if parts > 1 else 1
        if parts > 1:
            self.lower = nn.Parameter(-torch.ones(parts))
            self.upper = nn.Parameter(torch.ones(parts))

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Bounds in use, (groups,) each, attached to the graph."""
        return self._grid()[:2]

    @torch.no_grad()
    def set_bounds(self, lower: Tensor, upper: Tensor) -> None:
        groups, self.groups = self.groups, self.lower.numel()  # what is set are the shared ones
        super().set_bounds(lower, upper)
        self.groups = groups

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._grid()[2:]

    def lend(self, grid: Grid | None) -> None:
        """Have :meth:`quantize` use what :class:`BoundsTogether` worked out; None ends that."""
        self._lent = grid

    def _grid(self) -> Grid:
        grid = self._lent
        if grid is None:
            grid = _grid_between(self.lower, self.upper, self.qmax - self.qmin, self.qmin)
        if self.symmetric:
            grid = *grid[:3], None
        return grid if self.shared == 1 else tuple(t if t is None else t.repeat_interleave(self.shared) for t in grid)

    def quantize(self, x: Tensor) -> Tensor:
        lower, upper, scale, offset = self._grid()
        y = lsq(x, scale, offset, qmin=self.qmin, qmax=self.qmax, dim=self.dim)
        return on_bounds(y, x, lower, upper, self.dim) if torch.is_grad_enabled() else y

    def rounding(self) -> Rounding | None:
        if self.dim is not None or self.shared > 1:
            return None
        lower, upper, scale, offset = self._grid()
        return Rounding(scale, offset, self.qmin, self.qmax, lower, upper)

    def ordinary(self) -> MinMax:
        """The MinMax quantizer with these bounds."""
        granularity = "tensor" if self.dim is None else "channel"
        made = MinMax(
            self.bits, self.site, granularity=granularity, symmetric=self.symmetric, learnable=self.learnable
        ).to(self.lower.device, self.lower.dtype)
        lower, upper = (bound.detach() for bound in self.bounds())
        if self.symmetric:  # only the distance of the two counts
            upper = (upper - lower) / 2
            lower = -upper
        made.set_bounds(lower, upper)
        return made


def _grid_between(lower: Tensor, upper: Tensor, levels: float | Tensor, lowest: float | Tensor) -> Grid:
    """The grid of ``levels`` steps from code ``lowest`` on between bounds, which may have crossed."""
    lower = torch.where(lower < upper, lower, upper)
    floor = 1e-6 * torch.maximum(lower.detach().abs(), upper.detach().abs()) + 1e-12
    scale = torch.maximum(upper - lower, floor) / levels
    return lower, upper, scale, lowest * scale - lower


class BoundsTogether:
    """The grids of all trained bounds of a network from a handful of operations, instead of as many for each.

    On a GPU, launching those for a thousand quantizers takes longer than the network itself. Bits are the same.

    Args:
        net: network with :class:`TrainedBounds`.
    """

    def __init__(self, net: nn.Module) -> None:
        sites = {id(p.quantizer): p.quantizer for p in network_sites(net) if isinstance(p.quantizer, TrainedBounds)}
        self.quantizers = list(sites.values())
        self.sizes = [quantizer.lower.numel() for quantizer in self.quantizers]
        self._constants: tuple[Tensor, Tensor] | None = None  # steps and lowest code of every bound

    def _numbers(self, of: Callable[[TrainedBounds], float], like: Tensor) -> Tensor:
        values = [
            of(quantizer) for quantizer, size in zip(self.quantizers, self.sizes, strict=True) for _ in range(size)
        ]
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, the quantizers use grids worked out once, attached to the graph."""
        if not self.quantizers:
            yield
            return
        lower, upper = (torch.cat([getattr(q, name) for q in self.quantizers]) for name in ("lower", "upper"))
        if self._constants is None:
            self._constants = self._numbers(lambda q: q.qmax - q.qmin, lower), self._numbers(lambda q: q.qmin, lower)
        pieces = (t.split(self.sizes) for t in _grid_between(lower, upper, *self._constants))
        for quantizer, *grid in zip(self.quantizers, *pieces, strict=True):
            quantizer.lend(tuple(grid))
        try:
            yield
        finally:
            for quantizer in self.quantizers:
                quantizer.lend(None)


def train_bounds(sites: Sequence[PlacedSite]) -> None:
    """Put :class:`TrainedBounds` in place of MinMax quantizers."""
    for placed in sites:
        bounds = TrainedBounds(placed.quantizer, parts_of(placed))
        placed.replace(bounds.to(placed.quantizer.lower.device, placed.quantizer.lower.dtype))


def bound_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Bounds that are trained, in the order of their sites."""
    return [
        bound
        for placed in network_sites(net)
        if isinstance(placed.quantizer, TrainedBounds)
        for bound in (placed.quantizer.lower, placed.quantizer.upper)
    ]


def settle_bounds(net: nn.Module) -> None:
    """Put ordinary MinMax quantizers back, in place."""
    for placed in network_sites(net):
        if isinstance(placed.quantizer, TrainedBounds):
            placed.replace(placed.quantizer.ordinary())
