"""A network of another package, quantized from outside: EDSR's and Swin's situation."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from ..layers.info import NetworkInfo, network_info
from ..layers.matmul import MatMul
from .quantized import quantized_form


class TheirAttention(nn.Module):
    """Knows nothing of this package and multiplies where it stands."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.query(x) @ x.transpose(1, 2)).softmax(-1) @ x


@ARCH_REGISTRY.register()
class ToyForeign(nn.Module):
    """Denoising."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, dim, 3, padding=1)
        self.attention = TheirAttention(dim)
        self.tail = nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.head(x).flatten(2).transpose(1, 2)
        return x + self.tail(self.attention(tokens).transpose(1, 2).unflatten(2, x.shape[2:]))


class OurAttention(TheirAttention):
    """The same with its products as modules."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.qk(self.query(x), x.transpose(1, 2))
        return x + self.av(scores.softmax(-1), x)


def with_products(net: ToyForeign) -> None:
    """Put the products of the attention into modules."""
    net.attention.__class__ = OurAttention
    net.attention.qk, net.attention.av = MatMul("attention", ("q", "k")), MatMul("attention", ("map", "v"))


@network_info.register(ToyForeign)
def _(net: ToyForeign) -> NetworkInfo:
    return NetworkInfo(full_precision=("head", "tail"), blocks=("attention",))


@ARCH_REGISTRY.register()
@quantized_form(ToyForeign, with_products)
class QToyForeign(ToyForeign):
    """The graph of :class:`ToyForeign`, then ``prepare``."""
