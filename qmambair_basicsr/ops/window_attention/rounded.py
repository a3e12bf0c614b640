"""Window attention whose product with the values sees the probabilities rounded to a grid (quantized attention)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import choose, export_target
from ..rounding import Rounding
from . import BACKENDS, check_shapes, is_fused


def rounds(qkv: Tensor, tokens: int, heads: int) -> bool:
    """Whether :func:`window_attention_rounded` takes an input.

    Args:
        qkv, tokens, heads: as in ``is_fused``.
    """
    if export_target() is not None or not is_fused(qkv, tokens, heads):
        return False
    return hasattr(choose("window_attention", BACKENDS, qkv), "rounded_forward")


def window_attention_rounded(
    qkv: Tensor,
    table: Tensor,
    index: Tensor,
    order: Tensor,
    regions: Tensor | None = None,
    *,
    scale: float,
    rounding: Rounding,
) -> Tensor:
    """:func:`window_attention` with ``Q(softmax(...)) v``: Q is the rounding, with its gradients.

    Differentiable once in ``qkv``, ``table`` and the tensors of the rounding. Only for inputs that :func:`rounds` names: others
    have to quantize the probabilities in the open (``windowed``).

    Args:
        rounding: Q.
        others: as in ``window_attention``.

    Returns:
        (B, L, C), tokens at the positions they came from.

    Raises:
        ValueError: as ``window_attention``; a tensor of the rounding that is not one value, an input without kernels.
    """
    given = qkv, table, index, order, regions, *rounding.to(torch.float32).tensors
    return torch.ops.qmambair.window_attention_rounded(*given, rounding.qmin, rounding.qmax, scale)[0]


def _kernels(qkv, table, index, order, regions, rounding, **results):
    check_shapes(qkv, table, index, order, regions, **results)
    rounding.check("window_attention", qkv)
    if not rounds(qkv, order.shape[1], table.shape[1]):
        raise ValueError(
            f"window_attention: no kernels round the probabilities of qkv {tuple(qkv.shape)}, {qkv.dtype}, on {qkv.device} in "
            f"windows of {order.shape[1]} tokens; quantize them in the open (windowed)"
        )
    return choose("window_attention", BACKENDS, qkv)


_INPUTS = (
    "Tensor qkv, Tensor table, Tensor index, Tensor order, Tensor? regions, "
    "Tensor step, Tensor? offset, Tensor? lower, Tensor? upper"
)


@torch.library.custom_op(
    "qmambair::window_attention_rounded",
    mutates_args=(),
    schema=f"({_INPUTS}, int qmin, int qmax, float scale) -> (Tensor, Tensor)",
)
def _forward(qkv, table, index, order, regions, step, offset, lower, upper, qmin, qmax, scale):
    rounding = Rounding(step, offset, qmin, qmax, lower, upper)
    kernels = _kernels(qkv, table, index, order, regions, rounding)
    return kernels.rounded_forward(qkv, table, index, order, regions, scale, rounding)


@_forward.register_fake
def _forward_fake(qkv, table, index, order, regions, step, offset, lower, upper, qmin, qmax, scale):
    _kernels(qkv, table, index, order, regions, Rounding(step, offset, qmin, qmax, lower, upper))
    batch, length, channels = qkv.shape
    windows, tokens = order.shape
    norms = (batch, windows, table.shape[1], 2, tokens)
    return qkv.new_empty(batch, length, channels // 3), qkv.new_empty(norms, dtype=torch.float32)


@torch.library.custom_op(
    "qmambair::window_attention_rounded_backward",
    mutates_args=(),
    schema=f"(Tensor dout, {_INPUTS}, Tensor norms, int qmin, int qmax, float scale) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(dout, qkv, table, index, order, regions, step, offset, lower, upper, norms, qmin, qmax, scale):
    rounding = Rounding(step, offset, qmin, qmax, lower, upper)
    kernels = _kernels(qkv, table, index, order, regions, rounding, dout=dout, norms=norms)
    grads = kernels.rounded_backward(dout, qkv, table, index, order, regions, norms, scale, rounding)
    return tuple(qkv.new_empty(0) if g is None else g for g in grads)  # an operator returns tensors only


@_backward.register_fake
def _backward_fake(dout, qkv, table, index, order, regions, step, offset, lower, upper, norms, qmin, qmax, scale):
    _kernels(
        qkv, table, index, order, regions, Rounding(step, offset, qmin, qmax, lower, upper), dout=dout, norms=norms
    )
    given = (qkv, table, step, offset, lower, upper)
    return tuple(qkv.new_empty(0) if t is None else t.new_empty(t.shape) for t in given)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.qmin, ctx.qmax, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _autograd(ctx, dout, _):
    if dout is None:
        return (None,) * 12
    qkv, table, index, order, regions, *grid, norms = ctx.saved_tensors
    given = dout, qkv, table, index, order, regions, *grid, norms, ctx.qmin, ctx.qmax, ctx.scale
    dqkv, dtable, *dgrid = torch.ops.qmambair.window_attention_rounded_backward(*given)
    dgrid = (None if t is None else g for t, g in zip(grid, dgrid, strict=True))
    return dqkv, dtable, None, None, None, *dgrid, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
