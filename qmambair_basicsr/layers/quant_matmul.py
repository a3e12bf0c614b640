"""Product of two activations with fake-quantized operands (attention)."""

from __future__ import annotations

import torch
from torch import nn

from ..quantizers.base import Quantizer


class QuantMatMul(nn.Module):
    """left_quantizer(a) @ right_quantizer(b).

    Args:
        left_quantizer (Quantizer): For the left operand.
        right_quantizer (Quantizer): For the right operand.
    """

    def __init__(self, left_quantizer: Quantizer, right_quantizer: Quantizer):
        super().__init__()
        self.left_quantizer = left_quantizer
        self.right_quantizer = right_quantizer

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(..., M, K), (..., K, N) -> (..., M, N)."""
        return self.left_quantizer(a) @ self.right_quantizer(b)
