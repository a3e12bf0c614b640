"""``rfa``: fake quantization with learned thresholds (README.md has the maths)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import choose
from ..checks import code_bounds, same_device
from ..learned import first_order, step_gradient, step_in_use
from ..limits import as_type, full_precision

BACKENDS = ("native", "triton", "reference")


class _RFA(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, scale, offset, thresholds, qmin, floor, grad_scale):
        step = step_in_use(scale, floor)
        ctx.save_for_backward(w, step, offset, thresholds, scale)
        ctx.backend, ctx.qmin, ctx.step = choose("rfa", BACKENDS, w), qmin, (floor, grad_scale)
        return ctx.backend.forward(w, step, offset, thresholds, qmin)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        *tensors, scale = ctx.saved_tensors
        dw, d_step, *others = ctx.backend.backward(grad.contiguous(), *tensors, ctx.qmin)
        return dw, step_gradient(d_step, scale, *ctx.step), *others, None, None, None


def rfa(
    w: Tensor,
    scale: Tensor,
    offset: Tensor,
    thresholds: Tensor,
    *,
    qmin: int,
    floor: float | None = None,
    grad_scale: float = 1.0,
) -> Tensor:
    """Quantize ``w`` to ``(code - offset / step) * step``, code borders half-way between thresholds.

    Differentiable in every tensor through the piecewise linear surrogate of Q-MambaIR's RFA.

    Args:
        w: any shape; half precision is computed in float32 and returned in its own dtype.
        scale: (1,), the step size; > 0 unless there is a floor.
        offset: (1,), added before and subtracted after.
        thresholds: (N,) with N = 2^n levels, in units of codes. Unsorted ones are defined (the last border
            exceeded decides) but their gradient is not bounded.
        qmin: lowest code; the highest is ``qmin + N - 1``.
        floor: the step in use is ``max(|scale|, floor)``, its gradient to ``scale`` ``sign(scale)`` (+1 at 0);
            None for ``scale`` as it is.
        grad_scale: factor on the gradient that reaches ``scale``.

    Raises:
        ValueError: a parameter of another shape; another device; a lowest code that is none.
    """
    same_device("rfa", w=w, scale=scale, offset=offset, thresholds=thresholds)
    if scale.numel() != 1 or offset.numel() != 1 or thresholds.ndim != 1 or thresholds.numel() < 2:
        shapes = [tuple(t.shape) for t in (scale, offset, thresholds)]
        raise ValueError(f"rfa: scale and offset must be (1,) and thresholds (N,) with N >= 2, got {shapes}")
    code_bounds("rfa", qmin, qmin)
    code_bounds("rfa", qmin, qmin + thresholds.numel() - 1)
    full = full_precision(w)
    parameters = (p.to(full.dtype) for p in (scale, offset, thresholds))
    return as_type(_RFA.apply(full.contiguous(), *parameters, qmin, floor, grad_scale), w.dtype)
