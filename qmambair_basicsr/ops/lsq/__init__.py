"""``lsq``: fake quantization on an affine grid with learned step and offset (README.md has the maths).

Serves LSQ, LSQOffset, LSQPlus, MinMax and PAMS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import choose
from ..checks import code_bounds, same_device
from ..layout import FROM_LAST, TO_LAST, stored_channels_last
from ..learned import first_order, step_gradient, step_in_use
from ..limits import as_type, full_precision

BACKENDS = ("native", "triton", "reference")


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, offset, qmin, qmax, dim, floor, grad_scale):
        step = step_in_use(scale, floor)
        ctx.save_for_backward(x, step, offset, scale)
        ctx.backend, ctx.bounds, ctx.step = choose("lsq", BACKENDS, x), (qmin, qmax, dim), (floor, grad_scale)
        return ctx.backend.forward(x, step, offset, qmin, qmax, dim)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        x, step, offset, scale = ctx.saved_tensors
        dx, d_step, d_offset = ctx.backend.backward(grad.contiguous(), x, step, offset, *ctx.bounds)
        return dx, step_gradient(d_step, scale, *ctx.step), d_offset, None, None, None, None, None


def lsq(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    qmin: int,
    qmax: int,
    dim: int | None = None,
    floor: float | None = None,
    grad_scale: float = 1.0,
) -> Tensor:
    """``(clamp(round((x + offset) / step), qmin, qmax) - offset / step) * step``, by default with ``step = scale``.

    Differentiable in ``x``, ``scale`` and ``offset`` with the straight-through estimator for the rounding.

    Args:
        x: any shape; half precision is computed in float32 and returned in its own dtype. A channels_last map
            stays one.
        scale: step size, (1,) or (C,); > 0 unless there is a floor.
        offset: added before and subtracted after, (1,) or (C,); None for 0.
        qmin, qmax: smallest and largest code.
        dim: dimension of ``x`` that has C entries; needed when a parameter has more than one.
        floor: the step in use is ``max(|scale|, floor)``, its gradient to ``scale`` ``sign(scale)`` (+1 at 0);
            None for ``scale`` as it is.
        grad_scale: factor on the gradient that reaches ``scale``.

    Raises:
        ValueError: a parameter's size fits neither 1 nor dimension ``dim``; another device; bounds that are no codes.
    """
    code_bounds("lsq", qmin, qmax)
    same_device("lsq", x=x, scale=scale, offset=offset)
    if dim is not None and not -x.ndim <= dim < x.ndim:
        raise ValueError(f"lsq: x {tuple(x.shape)} has no dimension {dim}")
    for label, parameter in (("scale", scale), ("offset", offset)):
        if parameter is None or parameter.numel() == 1:
            continue
        if dim is None or x.shape[dim] != parameter.numel():
            size = "no dim given" if dim is None else f"dimension {dim} has {x.shape[dim]}"
            raise ValueError(f"lsq: {label} has {parameter.numel()} elements, but of x {tuple(x.shape)} {size}")
    moved = stored_channels_last(x)
    if moved:
        x, dim = x.permute(TO_LAST), None if dim is None else TO_LAST.index(dim % 4)
    full = full_precision(x)
    scale, offset = scale.to(full.dtype), None if offset is None else offset.to(full.dtype)
    out = as_type(_LSQ.apply(full.contiguous(), scale, offset, qmin, qmax, dim, floor, grad_scale), x.dtype)
    return out.permute(FROM_LAST) if moved else out
