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
        items = [item._replace(x=gapless(item.x)) for item in layout.items(tensors)]
        ctx.backend, ctx.layout = choose("lsq", BACKENDS, items[0].x), layout
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
    for item in items:
        _check(item)
    given, turned = [], []
    for item in items:
        x, dim = full_precision(item.x), item.dim
        turned.append(item.grouped and stored_channels_last(x))
        if turned[-1]:
            x, dim = x.permute(TO_LAST), TO_LAST.index(dim % 4)
        parameters = (t if t is None or t.dtype == x.dtype else t.to(x.dtype) for t in (item.scale, item.offset))
        given.append(LSQItem(x, *parameters, item.qmin, item.qmax, dim, item.floor, item.grad_scale))
    layout, tensors = flat(given, 3)
    outs = []
    for item, turn, out in zip(items, turned, _LSQ.apply(layout, *tensors), strict=True):
        out = out.permute(FROM_LAST) if turn else out
        outs.append(out if out.dtype == item.x.dtype else as_type(out, item.x.dtype))
    return outs


def _check(item: LSQItem) -> None:
    x, dim = item.x, item.dim
    code_bounds("lsq", item.qmin, item.qmax)
    same_device("lsq", x=x, scale=item.scale, offset=item.offset)
    if dim is not None and not -x.ndim <= dim < x.ndim:
        raise ValueError(f"lsq: x {tuple(x.shape)} has no dimension {dim}")
    for label, parameter in (("scale", item.scale), ("offset", item.offset)):
        if parameter is None or parameter.numel() == 1:
            continue
        if dim is None or x.shape[dim] != parameter.numel():
            size = "no dim given" if dim is None else f"dimension {dim} has {x.shape[dim]}"
            raise ValueError(f"lsq: {label} has {parameter.numel()} elements, but of x {tuple(x.shape)} {size}")
