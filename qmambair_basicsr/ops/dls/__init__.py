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
    def forward(ctx, layout, *tensors):
        items = [item._replace(x=gapless(item.x)) for item in layout.items(tensors)]
        ctx.backend, ctx.layout = choose("dls", BACKENDS, items[0].x), layout
        outs, kept = ctx.backend.forward_items(items)
        note(ctx.backend, items, outs)
        ctx.save_for_backward(*(t for item in items for t in item[:3]), *kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)  # no zeros for the grids
        return *outs, *kept

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        count = len(ctx.layout.constants)
        saved = ctx.saved_tensors  # asked for once: a checkpoint gives them out once
        items = ctx.layout.items(saved[: 3 * count])
        return None, *carried_back(ctx.backend.backward_items, grads[:count], items, saved[3 * count :], 3)


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
    (out,), grids = _run([DLSItem(x, w, v, x.shape[0], qmin, qmax, cap_share, grad_scale)])
    return out, grids[0]


def dls_together(items: Sequence[DLSItem]) -> list[Tensor]:
    """The quantized tensors of :func:`dls`, several in one call: the same bits as one by one, forward and backward.

    Args:
        items: at least one; tensors of any shape, of which ``rows`` equal parts of the first dimension have a grid each (1,
            or the size of that dimension). A channels_last map stays one. All on one device, all in float64 or none.
    """
    return _run(items)[0]


def _run(items: Sequence[DLSItem]) -> tuple[list[Tensor], list[Tensor]]:
    """Quantized tensors and their grids."""
    given = []
    for item in items:
        _check(item)
        x, w, v = full_precision(item.x), item.w, item.v
        if w.dtype != x.dtype:  # gradients of float32 weights from float64 data
            x = limited(x, dtype=w.dtype)
            w, v = w.to(x.dtype), v.to(x.dtype)
        given.append(item._replace(x=x, w=w, v=v))
    layout, tensors = flat(given, 3)
    results = _DLS.apply(layout, *tensors)
    outs = [o if o.dtype == i.x.dtype else as_type(o, i.x.dtype) for o, i in zip(results, items, strict=False)]
    return outs, list(results[len(items) + 1 :: 2])


def _check(item: DLSItem) -> None:
    x, w, v = item[:3]
    code_bounds("dls", item.qmin, item.qmax)
    same_device("dls", x=x, w=w, v=v)
    if x.shape[1:].numel() == 0 or item.rows not in (1, x.shape[0]):
        raise ValueError(f"dls: x must be (groups, values) with at least one value, got {tuple(x.shape)}")
    if w.shape != (4,) or v.shape != (4,):
        raise ValueError(f"dls: w and v must be (4,), got {tuple(w.shape)} and {tuple(v.shape)}")
