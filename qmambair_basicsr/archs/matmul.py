"""Products of two computed tensors as modules, so that ``prepare`` can quantize their operands."""

from __future__ import annotations

from torch import Tensor, nn


class MatMul(nn.Module):
    """``a @ b``.

    Args:
        kind: Site kind of both operands, ``attention`` or ``routing`` (see ``quantizers/spec.py``).
        operands: Names of the left and the right operand.
        roles: Quantizer role of each: ``act`` (dim 0 is the batch) or ``param`` (no batch dimension).
    """

    def __init__(self, kind: str, operands: tuple[str, str], roles: tuple[str, str] = ("act", "act")) -> None:
        super().__init__()
        self.kind, self.operands, self.roles = kind, operands, roles

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., M, K), (..., K, N) -> (..., M, N)."""
        return a @ b

    def extra_repr(self) -> str:
        return f"{self.kind}: {' @ '.join(self.operands)}"
