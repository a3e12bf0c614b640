"""A network in one file: convolutions, attention as a module, a raw weight with a site of its own. No scan."""

from __future__ import annotations

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from ..layers.info import NetworkInfo, network_info
from ..layers.matmul import MatMul
from ..layers.sites import SiteModule
from ..quantizers.site import Derived, Site
from ..strict import strict_options
from .quantized import quantized_form

POSITIVE = Derived(torch.exp, torch.log)


class Mixer(SiteModule):
    """Mix channels with a positive matrix, exp of its parameter: (B, L, C) -> (B, L, C)."""

    entry_points = ("mix",)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.randn(dim, dim) - 3)

    def quantization_sites(self) -> tuple[Site, ...]:
        size = self.log_weight.shape[0]
        common = {"part": "mix", "operation": "mix"}
        weight = Site.of_weight(
            size,
            shape=(size, size),
            operand="weight",
            slot="quantizers.weight",
            parameter="log_weight",
            derived=POSITIVE,
            **common,
        )
        return weight, Site.of_act(size, operand="act", slot="quantizers.input", **common)

    def mix(self, x: Tensor) -> Tensor:
        weight = self.site("weight", POSITIVE.value(self.log_weight), source=self.log_weight)
        return self.site("input", x) @ weight.t()


class Block(nn.Module):
    """Attention between pixels, then a mixer: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.product = MatMul("attention", ("q", "x"))
        self.mixer = Mixer(dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, L, C)
        scores = self.product(self.query(tokens), tokens.transpose(1, 2)).softmax(-1)
        return x + self.mixer.mix(scores @ tokens).transpose(1, 2).view(x.shape)


@ARCH_REGISTRY.register()
class ToyPlain(nn.Module):
    """Same-size restoration with sides that are multiples of 2."""

    @strict_options
    def __init__(self, dim: int = 6, depth: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, dim, 3, padding=1)
        self.body = nn.Sequential(*[Block(dim) for _ in range(depth)])
        self.tail = nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(self.body(self.head(x)))


@network_info.register(ToyPlain)
def _(net: ToyPlain) -> NetworkInfo:
    return NetworkInfo(size_multiple=2, full_precision=("head", "tail"), blocks=("body.*",))


@ARCH_REGISTRY.register()
@quantized_form(ToyPlain)
class QToyPlain(ToyPlain):
    """The graph of :class:`ToyPlain`, then ``prepare``."""
