"""A quantizer in one file whose codes are no integers times a scale: a sum of binary orders, greedily, for each row."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Quantizer
from .encoded import BinaryOrders
from .registry import register_quantizer
from .site import WEIGHT, Site
from .ste import snap


@register_quantizer
class ToyBinary(Quantizer):
    """``mean + sum_k alpha_k b_k``: alpha_k = mean |residual| of the row, b_k the residual's sign; ``bits`` orders."""

    bit_widths: ClassVar = (1, 2, 3, 4)
    roles: ClassVar = ("weight", "param")
    kind = BinaryOrders
    affine = False

    def __init__(self, bits: int, site: Site = WEIGHT) -> None:
        super().__init__(bits, site)
        rows = 1 if site.channels is None else site.channels
        self.alpha = nn.Parameter(torch.ones(bits, rows))
        self.offset = nn.Parameter(torch.zeros(rows))

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        shape = [1] * x.ndim
        if self.site.channels is not None:
            shape[self.site.channel_dim] = -1
        return parameter.to(x.dtype).reshape(shape)

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        rows = x.reshape(1, -1) if self.site.channels is None else x.movedim(self.site.channel_dim, 0).flatten(1)
        offset = rows.mean(1)
        rest, orders = rows - offset[:, None], []
        for _ in range(self.bits):
            orders.append(rest.abs().mean(1))
            rest = rest - orders[-1][:, None] * torch.where(rest < 0, -1.0, 1.0)
        return {"alpha": torch.stack(orders), "offset": offset}

    def encode(self, x: Tensor) -> BinaryOrders:
        self._require_initialized()
        x = self._full(x.detach())
        offset = self._spread(self.offset.detach(), x)
        alpha = torch.stack([self._spread(order, x) for order in self.alpha.detach()])
        rest, unsigned = x - offset, torch.zeros_like(x, dtype=torch.int32)
        for k, order in enumerate(alpha):
            positive = rest >= 0
            unsigned += positive.int() << k
            rest = rest - torch.where(positive, order, -order)
        return BinaryOrders(unsigned - 2 ** (self.bits - 1), alpha, offset=offset)

    def quantize(self, x: Tensor) -> Tensor:
        full = self._full(x)
        encoded = self.encode(full)
        unsigned = encoded.codes + 2 ** (self.bits - 1)
        signs = [((unsigned >> k) & 1) * 2 - 1 for k in range(self.bits)]
        grid = self._spread(self.offset, full) + sum(
            self._spread(order, full) * sign for order, sign in zip(self.alpha, signs, strict=True)
        )
        return snap(grid + full - full.detach(), encoded.values()).to(x.dtype)
