"""``rfa``: fake quantization with learned thresholds (README.md has the maths)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import choose

BACKENDS = ("native", "triton", "reference")


class _RFA(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, scale, offset, thresholds, qmin):
        ctx.save_for_backward(w, scale, offset, thresholds)
        ctx.qmin = qmin
        return choose("rfa", BACKENDS, w).forward(w, scale, offset, thresholds, qmin)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        tensors = ctx.saved_tensors
        gradients = choose("rfa", BACKENDS, tensors[0]).backward(grad.contiguous(), *tensors, ctx.qmin)
        return (*gradients, None)


def rfa(w: Tensor, scale: Tensor, offset: Tensor, thresholds: Tensor, *, qmin: int) -> Tensor:
    """Quantize ``w`` to ``(code - offset / scale) * scale``, code borders half-way between thresholds.

    Differentiable in every tensor through the piecewise linear surrogate of Q-MambaIR's RFA.

    Args:
        w: any shape; half precision is computed in float32 and returned in its own dtype.
        scale: (1,), step size > 0.
        offset: (1,), added before and subtracted after.
        thresholds: (N,) with N = 2^n levels, in units of codes. Unsorted ones are defined (the last border
            exceeded decides) but their gradient is not bounded.
        qmin: lowest code; the highest is ``qmin + N - 1``.

    Raises:
        ValueError: a parameter of another shape.
    """
    if scale.numel() != 1 or offset.numel() != 1 or thresholds.ndim != 1 or thresholds.numel() < 2:
        shapes = [tuple(t.shape) for t in (scale, offset, thresholds)]
        raise ValueError(f"rfa: scale and offset must be (1,) and thresholds (N,) with N >= 2, got {shapes}")
    full = w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
    return _RFA.apply(full.contiguous(), scale, offset, thresholds, qmin).to(w.dtype)
