"""How large values may be: what keeps quantizers finite for every finite input, up to the largest of its type.

Sums, differences and quotients of the largest floating-point numbers are infinite, and an infinity times 0 is NaN. A value
beyond ``LARGEST`` is therefore taken for ``LARGEST`` wherever a statistic or a gradient is computed from it (codes need
no limit: a quotient that overflows is clamped to the outermost code). ``CALIBRATION`` is smaller, so that a standard
deviation, a sum of squares, does not overflow either; calibration leaves no step near the edge of the type.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.float32: 2.0**80, torch.float64: 2.0**960}
CALIBRATION = {torch.float32: 2.0**50, torch.float64: 2.0**480}
_HALF = torch.finfo(torch.float16).max


def limited(x: Tensor, limits: dict[torch.dtype, float] = LARGEST, dtype: torch.dtype | None = None) -> Tensor:
    """``x`` without values beyond the limit of its type, or of ``dtype``: float32 or float64; NaN stays NaN."""
    limit = limits[dtype or x.dtype]
    return torch.clamp(x, -limit, limit)


class _FromHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.clamp(-_HALF, _HALF).half()


def full_precision(x: Tensor) -> Tensor:
    """Half precision as float32, in which all arithmetic here is done; gradients beyond float16 become its largest."""
    if x.dtype == torch.float16:
        return _FromHalf.apply(x)
    return x.float() if x.dtype == torch.bfloat16 else x


def as_type(y: Tensor, dtype: torch.dtype) -> Tensor:
    """A result in the type of the input; in float16 what is beyond its largest value becomes that."""
    return y.clamp(-_HALF, _HALF).half() if dtype == torch.float16 else y.to(dtype)
