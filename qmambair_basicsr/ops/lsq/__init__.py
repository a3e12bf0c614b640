"""``lsq``: fake quantization on an affine grid with learned step and offset (README.md has the maths).

Serves LSQ, LSQOffset, LSQPlus, MinMax and PAMS.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import choose
from ..layout import FROM_LAST, TO_LAST, stored_channels_last

BACKENDS = ("native", "triton", "reference")


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, offset, qmin, qmax, dim):
        ctx.save_for_backward(x, scale, offset)
        ctx.bounds = qmin, qmax, dim
        return choose("lsq", BACKENDS, x).forward(x, scale, offset, qmin, qmax, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, offset = ctx.saved_tensors
        gradients = choose("lsq", BACKENDS, x).backward(grad.contiguous(), x, scale, offset, *ctx.bounds)
        return (*gradients, None, None, None)


def lsq(
    x: Tensor, scale: Tensor, offset: Tensor | None = None, *, qmin: int, qmax: int, dim: int | None = None
) -> Tensor:
    """``(clamp(round((x + offset) / scale), qmin, qmax) - offset / scale) * scale``.

    Differentiable in ``x``, ``scale`` and ``offset`` with the straight-through estimator for the rounding.

    Args:
        x: any shape; half precision is computed in float32 and returned in its own dtype. A channels_last map
            stays one.
        scale: step size > 0, (1,) or (C,).
        offset: added before and subtracted after, (1,) or (C,); None for 0.
        qmin, qmax: smallest and largest code.
        dim: dimension of ``x`` that has C entries; needed when a parameter has more than one.

    Raises:
        ValueError: a parameter's size fits neither 1 nor dimension ``dim``.
    """
    for label, parameter in (("scale", scale), ("offset", offset)):
        if parameter is None or parameter.numel() == 1:
            continue
        if dim is None or x.shape[dim] != parameter.numel():
            size = "no dim given" if dim is None else f"dimension {dim} has {x.shape[dim]}"
            raise ValueError(f"lsq: {label} has {parameter.numel()} elements, but of x {tuple(x.shape)} {size}")
    if stored_channels_last(x):
        moved = None if dim is None else TO_LAST.index(dim % 4)
        return lsq(x.permute(TO_LAST), scale, offset, qmin=qmin, qmax=qmax, dim=moved).permute(FROM_LAST)
    if x.dtype in (torch.float16, torch.bfloat16):
        return _LSQ.apply(x.float().contiguous(), scale, offset, qmin, qmax, dim).to(x.dtype)
    return _LSQ.apply(x.contiguous(), scale, offset, qmin, qmax, dim)
