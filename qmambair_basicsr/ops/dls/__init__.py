"""``dls``: dynamic fake quantization whose grid follows the statistics of the tensor (README.md has the maths)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import choose
from ..checks import code_bounds, same_device
from ..learned import first_order
from ..limits import as_type, full_precision, limited

BACKENDS = ("native", "triton", "reference")


class _DLS(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, v, qmin, qmax, cap_share, grad_scale):
        ctx.backend, ctx.constants = choose("dls", BACKENDS, x), (cap_share, grad_scale)
        out, stats, grid = ctx.backend.forward(x, w, v, qmin, qmax, cap_share)
        ctx.save_for_backward(x, w, v, stats, grid)
        ctx.mark_non_differentiable(grid)
        ctx.set_materialize_grads(False)  # no zeros for the grid; ``out`` has a gradient whenever backward runs
        return out, grid

    @staticmethod
    @first_order
    def backward(ctx, grad, _):
        gradients = ctx.backend.backward(grad.contiguous(), *ctx.saved_tensors, *ctx.constants)
        return (*gradients, None, None, None, None)


def dls(
    x: Tensor, w: Tensor, v: Tensor, *, qmin: int, qmax: int, cap_share: float, grad_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Quantize each row of ``x`` on the grid that its own mean, std, min and max define.

    Differentiable in ``x`` (statistics included), ``w`` and ``v``; the rounding is straight-through.

    Args:
        x: (G, M), one group of statistics per row; half precision is computed in float32.
        w, v: (4,), weights of (mean, std, min, max) that make the step and the offset.
        qmin, qmax: smallest and largest code.
        cap_share: the step saturates towards ``cap_share * (max - min)``.
        grad_scale: factor on the gradient that reaches the step.

    Returns:
        The quantized tensor (G, M) in the dtype of ``x``, and the grid (G, 4) in use, without gradient: step,
        offset, lowest and highest code. ``out = (code - offset / step) * step`` exactly.

    Raises:
        ValueError: ``x`` is not (G, M) with M >= 1, or ``w``, ``v`` are not (4,); another device; bounds that are no codes.
    """
    code_bounds("dls", qmin, qmax)
    same_device("dls", x=x, w=w, v=v)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"dls: x must be (groups, values) with at least one value, got {tuple(x.shape)}")
    if w.shape != (4,) or v.shape != (4,):
        raise ValueError(f"dls: w and v must be (4,), got {tuple(w.shape)} and {tuple(v.shape)}")
    full = full_precision(x)
    if w.dtype != full.dtype:  # gradients of float32 weights from float64 data
        full = limited(full, dtype=w.dtype)
    out, grid = _DLS.apply(full.contiguous(), w.to(full.dtype), v.to(full.dtype), qmin, qmax, cap_share, grad_scale)
    return as_type(out, x.dtype), grid
