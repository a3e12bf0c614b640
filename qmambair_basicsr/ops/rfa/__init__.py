"""``rfa``: fake quantization with learned thresholds (README.md has the maths)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend import choose
from ..checks import code_bounds, same_device
from ..learned import first_order
from ..limits import as_type, full_precision
from ..together import carried_back, flat
from .item import RFAItem

BACKENDS = ("native", "triton", "reference")

__all__ = ["BACKENDS", "RFAItem", "rfa", "rfa_together"]


class _RFA(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, *tensors):
        items = [t if t.w.is_contiguous() else t._replace(w=t.w.contiguous()) for t in layout.items(tensors)]
        ctx.backend, ctx.layout = choose("rfa", BACKENDS, tensors[0]), layout
        ctx.save_for_backward(*(t for item in items for t in item[:4]))
        ctx.set_materialize_grads(False)
        return tuple(ctx.backend.forward_items(items))

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        items = ctx.layout.items(ctx.saved_tensors)
        return None, *carried_back(ctx.backend.backward_items, grads, items, (), 4)


def rfa(
    w: Tensor,
    scale: Tensor,
    offset: Tensor,
    thresholds: Tensor,
    *,
    qmin: int,
    floor: float | None = None,
    grad_scale: float = 1.0,
    min_gap: float | None = None,
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
        min_gap: thresholds in use are sorted with gaps of at least this, see ``item.order``; None for those given.

    Raises:
        ValueError: a parameter of another shape; another device; a lowest code that is none.
    """
    return rfa_together([RFAItem(w, scale, offset, thresholds, qmin, floor, grad_scale, min_gap)])[0]


def rfa_together(items: Sequence[RFAItem]) -> list[Tensor]:
    """:func:`rfa` of several tensors in one call: the same bits as one by one, forward and backward.

    Args:
        items: at least one; all on one device, all in float64 or none.
    """
    layout, tensors = flat([_given(item) for item in items], 4)
    outs = zip(_RFA.apply(layout, *tensors), items, strict=True)
    return [out if out.dtype is item.w.dtype else as_type(out, item.w.dtype) for out, item in outs]


def _given(item: RFAItem) -> RFAItem:
    """An item that was checked, in one precision."""
    _check(item)
    w, scale, offset, thresholds = item[:4]
    if w.dtype is scale.dtype is offset.dtype is thresholds.dtype is torch.float32:
        return item
    w = full_precision(w)
    scale, offset, thresholds = (p if p.dtype is w.dtype else p.to(w.dtype) for p in (scale, offset, thresholds))
    return item._replace(w=w, scale=scale, offset=offset, thresholds=thresholds)


def _check(item: RFAItem) -> None:
    w, scale, offset, thresholds = item[:4]
    if not w.device == scale.device == offset.device == thresholds.device:
        same_device("rfa", w=w, scale=scale, offset=offset, thresholds=thresholds)
    if scale.numel() != 1 or offset.numel() != 1 or thresholds.ndim != 1 or thresholds.numel() < 2:
        shapes = [tuple(t.shape) for t in (scale, offset, thresholds)]
        raise ValueError(f"rfa: scale and offset must be (1,) and thresholds (N,) with N >= 2, got {shapes}")
    code_bounds("rfa", item.qmin, item.qmin)
    code_bounds("rfa", item.qmin, item.qmin + thresholds.numel() - 1)
