"""Products of two computed tensors as modules, so that ``prepare`` can quantize their operands."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..quantizers.base import Quantizer
from ..quantizers.site import Site


class MatMul(nn.Module):
    """``a @ b``.

    Args:
        kind: Site kind of both operands, ``attention`` or ``routing`` (see ``quantizers/site.py``).
        operands: Names of the left and the right operand.
        roles: Quantizer role of each: ``act`` (dim 0 is the batch) or ``param`` (no batch dimension).
    """

    def __init__(
        self,
        kind: str = "attention",
        operands: tuple[str, str] = ("left", "right"),
        roles: tuple[str, str] = ("act", "act"),
    ) -> None:
        super().__init__()
        self.kind, self.operands, self.roles = kind, operands, roles

    def quantization_sites(self) -> tuple[Site, ...]:
        """The left and the right operand."""
        return tuple(
            Site(self.kind, role, part=operand, slot=f"{side}_quantizer")
            for side, operand, role in zip(("left", "right"), self.operands, self.roles, strict=True)
        )

    def attach_quantizers(self, quantizers: Mapping[str, Quantizer]) -> QuantMatMul:
        """The product that takes the place of this one, with a quantizer by the slot of each site."""
        return QuantMatMul(**quantizers, product=self).train(self.training)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., M, K), (..., K, N) -> (..., M, N)."""
        return a @ b

    def extra_repr(self) -> str:
        return f"{self.kind}: {' @ '.join(self.operands)}"


class QuantMatMul(MatMul):
    """left_quantizer(a) @ right_quantizer(b).

    Args:
        left_quantizer (Quantizer): For the left operand.
        right_quantizer (Quantizer): For the right operand.
        product (MatMul | None): Product that it takes the place of; its kind and names are taken over.
    """

    def __init__(self, left_quantizer: Quantizer, right_quantizer: Quantizer, product: MatMul | None = None):
        super().__init__(*(() if product is None else (product.kind, product.operands, product.roles)))
        self.left_quantizer = left_quantizer
        self.right_quantizer = right_quantizer

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., M, K), (..., K, N) -> (..., M, N)."""
        return self.left_quantizer(a) @ self.right_quantizer(b)
