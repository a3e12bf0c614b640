"""``dls``: dynamic fake quantization whose grid follows the statistics of the tensor (README.md has the maths)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..again import note
from ..backend import choose
from ..checks import code_bounds, same_device
from ..layout import gapless
from ..learned import first_order
from ..limits import as_type, full_precision, limited
from ..together import carried_back, flat
from .item import DLSItem

BACKENDS = ("native", "triton", "reference")

__all__ = ["BACKENDS", "DLSItem", "dls", "dls_together"]


class _DLS(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, with_grids, *tensors):
        items = [t if t.x.is_contiguous() else t._replace(x=gapless(t.x)) for t in layout.items(tensors)]
        ctx.backend, ctx.layout = choose("dls", BACKENDS, tensors[0]), layout
        outs, kept = ctx.backend.forward_items(items)
        note(ctx.backend, items, outs)
        ctx.save_for_backward(*(t for item in items for t in item[:3]), *kept)
        ctx.set_materialize_grads(False)  # no zeros for results that nobody used
        if not with_grids:
            return tuple(outs)
        grids = kept[1::2]
        ctx.mark_non_differentiable(*grids)
        return *outs, *grids

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        count = len(ctx.layout.constants)
        saved = ctx.saved_tensors  # asked for once: a checkpoint gives them out once
        items = ctx.layout.items(saved[: 3 * count])
        return None, None, *carried_back(ctx.backend.backward_items, grads[:count], items, saved[3 * count :], 3)


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
    if x.ndim != 2:
        raise ValueError(f"dls: x must be (groups, values) with at least one value, got {tuple(x.shape)}")
    out, grid = _run([DLSItem(x, w, v, x.shape[0], qmin, qmax, cap_share, grad_scale)], with_grids=True)
    return out, grid


def dls_together(items: Sequence[DLSItem]) -> list[Tensor]:
    """The quantized tensors of :func:`dls`, several in one call: the same bits as one by one, forward and backward.

    Args:
        items: at least one; tensors of any shape, of which ``rows`` equal parts of the first dimension have a grid each (1,
            or the size of that dimension). A channels_last map stays one. All on one device, all in float64 or none.
    """
    return _run(items, with_grids=False)


def _run(items: Sequence[DLSItem], with_grids: bool) -> list[Tensor]:
    """Quantized tensors, then their grids where these are asked for."""
    layout, tensors = flat([_given(item) for item in items], 3)
    outs = list(_DLS.apply(layout, with_grids, *tensors))
    for i, (x, *_) in enumerate(items):
        if outs[i].dtype is not x.dtype:
            outs[i] = as_type(outs[i], x.dtype)
    return outs


def _given(item: DLSItem) -> DLSItem:
    """An item that was checked, in one precision."""
    _check(item)
    x, w, v = item[:3]
    if x.dtype is w.dtype is v.dtype is torch.float32:
        return item
    x = full_precision(x)
    if w.dtype != x.dtype:  # gradients of float32 weights from float64 data
        x = limited(x, dtype=w.dtype)
        w, v = w.to(x.dtype), v.to(x.dtype)
    return item._replace(x=x, w=w, v=v)


def _check(item: DLSItem) -> None:
    x, w, v, rows, qmin, qmax, *_ = item
    code_bounds("dls", qmin, qmax)
    if not x.device == w.device == v.device:
        same_device("dls", x=x, w=w, v=v)
    if x.shape[1:].numel() == 0 or (rows != 1 and rows != x.shape[0]):
        raise ValueError(f"dls: x must be (groups, values) with at least one value, got {tuple(x.shape)}")
    if w.shape != (4,) or v.shape != (4,):
        raise ValueError(f"dls: w and v must be (4,), got {tuple(w.shape)} and {tuple(v.shape)}")
