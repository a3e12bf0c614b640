"""``lsq``: fake quantization on an affine grid with learned step and offset (README.md has the maths).

Serves LSQ, LSQOffset, LSQPlus, MinMax and PAMS.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..again import note
from ..backend import choose
from ..checks import code_bounds, same_device
from ..layout import FROM_LAST, TO_LAST, gapless, stored_channels_last
from ..learned import first_order
from ..limits import as_type, full_precision
from ..together import carried_back, flat
from .item import LSQItem

BACKENDS = ("native", "triton", "reference")

__all__ = ["BACKENDS", "LSQItem", "lsq", "lsq_together"]


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, *tensors):
        items = [t if t.x.is_contiguous() else t._replace(x=gapless(t.x)) for t in layout.items(tensors)]
        ctx.backend, ctx.layout = choose("lsq", BACKENDS, tensors[0]), layout
        outs, kept = ctx.backend.forward_items(items)
        note(ctx.backend, items, outs)
        ctx.save_for_backward(*(t for item in items for t in item[:3]), *kept)
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        saved = ctx.saved_tensors  # asked for once: a checkpoint gives them out once
        items = ctx.layout.items(saved)
        return None, *carried_back(ctx.backend.backward_items, grads, items, saved[3 * len(items) :], 3)


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
    return lsq_together([LSQItem(x, scale, offset, qmin, qmax, dim, floor, grad_scale)])[0]


def lsq_together(items: Sequence[LSQItem]) -> list[Tensor]:
    """:func:`lsq` of several tensors in one call: the same bits as one by one, forward and backward.

    Args:
        items: at least one; all on one device, all in float64 or none.
    """
    given, turned = [], []
    for item in items:
        _check(item)
        turned.append(not item.x.is_contiguous() and item.grouped and stored_channels_last(item.x))
        given.append(_given(item, turned[-1]))
    layout, tensors = flat(given, 3)
    outs = list(_LSQ.apply(layout, *tensors))
    for i, (x, *_) in enumerate(items):
        if turned[i]:
            outs[i] = outs[i].permute(FROM_LAST)
        if outs[i].dtype is not x.dtype:
            outs[i] = as_type(outs[i], x.dtype)
    return outs


def _given(item: LSQItem, turn: bool) -> LSQItem:
    """An item in one precision, with its channels last where that is how it is stored."""
    x, scale, offset = item[:3]
    dtype = x.dtype
    if not turn and dtype is scale.dtype is torch.float32 and (offset is None or offset.dtype is dtype):
        return item
    x = full_precision(x)
    scale, offset = (t if t is None or t.dtype is x.dtype else t.to(x.dtype) for t in (scale, offset))
    if not turn:
        return item._replace(x=x, scale=scale, offset=offset)
    return item._replace(x=x.permute(TO_LAST), scale=scale, offset=offset, dim=TO_LAST.index(item.dim % 4))


def _check(item: LSQItem) -> None:
    x, scale, offset, qmin, qmax, dim, *_ = item
    code_bounds("lsq", qmin, qmax)
    if x.device != scale.device or (offset is not None and x.device != offset.device):
        same_device("lsq", x=x, scale=scale, offset=offset)
    if dim is not None and not -x.ndim <= dim < x.ndim:
        raise ValueError(f"lsq: x {tuple(x.shape)} has no dimension {dim}")
    for label, parameter in (("scale", scale), ("offset", offset)):
        if parameter is None or parameter.numel() == 1:
            continue
        if dim is None or x.shape[dim] != parameter.numel():
            size = "no dim given" if dim is None else f"dimension {dim} has {x.shape[dim]}"
            raise ValueError(f"lsq: {label} has {parameter.numel()} elements, but of x {tuple(x.shape)} {size}")
