"""A network with a selective scan in one file, with parameters and sites of its own."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from ..layers.detection import detects
from ..layers.info import NetworkInfo, network_info
from ..layers.sites import SiteModule
from ..ops.ss2d_scan import ss2d_scan
from ..quantizers.site import Derived, Site
from ..strict import strict_options
from .quantized import quantized_form

DECAY = Derived(lambda p: -torch.nn.functional.softplus(p), lambda a: torch.log(torch.expm1(-a)))


class ColumnScan(SiteModule):
    """x + scan(x) down and up the columns, states of size N: (B, H, W, C) -> (B, H, W, C)."""

    directions = ("col", "col_rev")

    def __init__(self, dim: int, states: int) -> None:
        super().__init__()
        k = len(self.directions)
        self.inner = nn.Linear(dim, k * (dim + 2 * states))
        self.decay = nn.Parameter(torch.randn(k, dim, states))
        self.outer = nn.Linear(dim, dim)

    def quantization_sites(self) -> tuple[Site, ...]:
        k, dim, states = shape = tuple(self.decay.shape)

        def site(name: str, channels: int, role: str = "act", **more) -> Site:
            place = {"part": name, "operation": "scan", "slot": f"quantizers.{name}"}
            return Site("scan", role, channels, -1, **place, **more)

        decay = site("decay", states, "param", shape=shape, parameter="decay", derived=DECAY)
        return site("x", dim, copies=k), site("delta", dim), decay, site("B", states), site("C", states)

    def forward(self, x: Tensor) -> Tensor:
        k, dim, states = self.decay.shape
        maps = self.inner(x).unflatten(-1, (k, dim + 2 * states)).split((dim, states, states), -1)
        delta, b, c = (self.site(name, value) for name, value in zip(("delta", "B", "C"), maps, strict=True))
        decay = self.site("decay", DECAY.value(self.decay), source=self.decay)
        y = ss2d_scan(
            self.site("x", x), delta, decay, b, c, None, None, delta_softplus=True, directions=self.directions
        )
        return x + self.outer(y)


@ARCH_REGISTRY.register()
class ToyScan(nn.Module):
    """Super-resolution by 2."""

    @strict_options
    def __init__(self, dim: int = 6, states: int = 2, depth: int = 1) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, dim, 3, padding=1)
        self.body = nn.Sequential(*[ColumnScan(dim, states) for _ in range(depth)])
        self.tail = nn.Sequential(nn.Conv2d(dim, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(self.head(x).permute(0, 2, 3, 1))
        return self.tail(features.permute(0, 3, 1, 2))


@network_info.register(ToyScan)
def _(net: ToyScan) -> NetworkInfo:
    return NetworkInfo(scale=2, full_precision=("head", "tail.*"), behind_scan=("*.outer",), blocks=("body.*",))


@detects("ToyScan")
def _(keys):
    _, dim, states = keys["body.0.decay"]
    return {"dim": dim, "states": states, "depth": keys.count("body")}


@ARCH_REGISTRY.register()
@quantized_form(ToyScan)
class QToyScan(ToyScan):
    """The graph of :class:`ToyScan`, then ``prepare``."""
