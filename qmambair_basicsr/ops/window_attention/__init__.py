"""Self-attention inside windows with a relative-position bias, as one operator with gradients.

Source: Liu et al., "Swin Transformer" (ICCV 2021), eq. 4; MambaIRv2 uses it unchanged.
torch has no fused attention with a gradient to the bias; composed of its operators, each layer writes several
(windows, heads, T, T) maps to memory. The operator is registered with torch as ``qmambair::window_attention``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import choose, export_target
from ..checks import integers, permutation, rows_of, same_device
from .composed import windowed

BACKENDS = ("native", "triton", "reference")
MASKED = -100.0  # added to the logits of two tokens in different regions


def is_fused(qkv: Tensor, tokens: int, heads: int) -> bool:
    """Whether a backend other than the reference takes this input.

    Args:
        qkv: (B, L, 3 * C).
        tokens: T, tokens of a window.
        heads: heads that share C.
    """
    module = choose("window_attention", BACKENDS, qkv)
    return module.__name__.rpartition(".")[2] != "reference" and module.accepts(qkv, tokens, heads)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention of windows that are cut out already, ``softmax(scale * q k^T + bias) v``; for evaluation.

    Args:
        q, k, v: (n, heads, T, channels of a head).
        bias: added to the logits, broadcastable to (n, heads, T, T), in q's dtype.
        scale: factor on the products of queries and keys.

    Returns:
        Shaped like q.
    """
    if export_target() is not None:
        from . import onnx

        return onnx.attend(q, k, v, bias, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    # with gradients to the bias, torch has no fused kernel and its fallback is slower than the two products
    if torch.is_grad_enabled():
        return ((q * scale) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
    return attend(q, k, v, bias.to(q.dtype), scale)


def window_attention(
    qkv: Tensor,
    table: Tensor,
    index: Tensor,
    order: Tensor,
    regions: Tensor | None = None,
    *,
    scale: float,
    kinds: Sequence[tuple[int, Tensor | None]] | None = None,
) -> Tensor:
    """``softmax(scale * q k^T + table[index] + mask) v`` within every window and head.

    Differentiable once in ``qkv`` and ``table``.

    Args:
        qkv: queries, keys and values of all tokens, (B, L, 3 * C), L = windows * T.
        table: bias of every relative position and head, (R, heads); heads must divide C.
        index: row of the table for every pair (query, key), (T, T) int64.
        order: position in L of every token of every window, (windows, T) int64, a permutation of range(L).
        regions: (windows, T) int32; two tokens with different values get ``MASKED`` added. None: no mask.
        scale: factor on the products of queries and keys.
        kinds: the mask of ``regions`` once more, for where no kernel runs: number of windows and mask, broadcastable to
            (number, 1, T, T), or None, for windows that follow each other in ``order`` and share it. Spares a mask per
            window.

    Returns:
        (B, L, C), tokens at the positions they came from, in qkv's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an index that is no row of the table, an order that is no
            permutation; they are named.
    """
    if export_target() is None:  # sides that are open in an exported graph cannot be compared
        check_shapes(qkv, table, index, order, regions)
    if not is_fused(qkv, order.shape[1], table.shape[1]):
        from . import reference

        check_values(table, index, order)
        if kinds is not None:
            return windowed(partial(_attend, scale=scale), qkv, table, index, order, kinds)
        return reference.forward(qkv, table, index, order, regions, scale)
    return torch.ops.qmambair.window_attention(qkv, table, index, order, regions, scale)[0]


def window_attention_into(
    out: Tensor,
    qkv: Tensor,
    table: Tensor,
    index: Tensor,
    order: Tensor,
    regions: Tensor | None = None,
    *,
    scale: float,
    kinds: Sequence[tuple[int, Tensor | None]] | None = None,
) -> Tensor:
    """:func:`window_attention` into a buffer, for evaluation.

    Args:
        out: contiguous (B, L, C), filled; may not overlap qkv.
    """
    module = choose("window_attention", BACKENDS, qkv)
    able = hasattr(module, "forward_into") and out.is_contiguous() and not torch.is_grad_enabled()
    if not (able and is_fused(qkv, order.shape[1], table.shape[1])):
        given = {"scale": scale, "kinds": kinds}
        return out.copy_(window_attention(qkv, table, index, order, regions, **given))
    check_shapes(qkv, table, index, order, regions, out=out)
    module.forward_into(out, qkv, table, index, order, regions, scale)
    return out


def check_shapes(
    qkv: Tensor, table: Tensor, index: Tensor, order: Tensor, regions: Tensor | None, **results: Tensor
) -> None:
    """Whether shapes, dtypes and devices fit; ``results``: dout, out and norms of a backward pass."""
    fits = qkv.dim() == 3 and table.dim() == 2 and order.dim() == 2 and table.shape[1] > 0
    if fits:
        (batch, length, channels), (windows, tokens), heads = qkv.shape, order.shape, table.shape[1]
        maps = (batch, length, channels // 3)
        wanted = {"dout": maps, "out": maps, "norms": (batch, windows, heads, 2, tokens)}
        fits = length == windows * tokens and channels % (3 * heads) == 0 and index.shape == (tokens, tokens)
        fits = fits and (regions is None or regions.shape == order.shape)
        fits = fits and all(tuple(t.shape) == wanted[name] for name, t in results.items())
    tensors = {"qkv": qkv, "table": table, "index": index, "order": order, "regions": regions, **results}
    if not fits:
        listed = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items() if t is not None)
        raise ValueError(f"window_attention: shapes do not fit: {listed}; see its documentation")
    for name in ("index", "order", "regions"):
        if tensors[name] is not None:
            integers("window_attention", name, tensors[name])
    for name, t in results.items():
        wanted = torch.float32 if name == "norms" else qkv.dtype
        if t.dtype != wanted:
            raise ValueError(f"window_attention: {name} is {t.dtype}, not {wanted} (qkv is {qkv.dtype})")
    same_device("window_attention", **tensors)


def check_values(table: Tensor, index: Tensor, order: Tensor) -> None:
    """Whether index and order stay inside what they point into.

    Raises:
        ValueError: the first value that does not is named.
    """
    rows_of("window_attention", "index", index, table.shape[0], "table")
    permutation("window_attention", "order", order)


_INPUTS = "Tensor qkv, Tensor table, Tensor index, Tensor order, Tensor? regions"


@torch.library.custom_op(
    "qmambair::window_attention", mutates_args=(), schema=f"({_INPUTS}, float scale) -> (Tensor, Tensor)"
)
def _forward(qkv, table, index, order, regions, scale):
    check_shapes(qkv, table, index, order, regions)  # torch.ops leads here without the function above
    return _fused(qkv, table, order).forward(qkv, table, index, order, regions, scale)


def _fused(qkv, table, order):
    """The kernels for an input of :func:`is_fused`."""
    if not is_fused(qkv, order.shape[1], table.shape[1]):
        raise ValueError(
            f"torch.ops.qmambair.window_attention: no kernels for qkv {tuple(qkv.shape)}, {qkv.dtype}, on {qkv.device} in "
            f"windows of {order.shape[1]} tokens; call ops.window_attention, which has a way for every input"
        )
    return choose("window_attention", BACKENDS, qkv)


@_forward.register_fake
def _forward_fake(qkv, table, index, order, regions, scale):
    check_shapes(qkv, table, index, order, regions)
    batch, length, channels = qkv.shape
    windows, tokens = order.shape
    norms = (batch, windows, table.shape[1], 2, tokens)
    return qkv.new_empty(batch, length, channels // 3), qkv.new_empty(norms, dtype=torch.float32)


@torch.library.custom_op(
    "qmambair::window_attention_backward",
    mutates_args=(),
    schema=f"(Tensor dout, {_INPUTS}, Tensor out, Tensor norms, float scale) -> (Tensor, Tensor)",
)
def _backward(dout, qkv, table, index, order, regions, out, norms, scale):
    check_shapes(qkv, table, index, order, regions, dout=dout, out=out, norms=norms)
    return _fused(qkv, table, order).backward(dout, qkv, table, index, order, regions, out, norms, scale)


@_backward.register_fake
def _backward_fake(dout, qkv, table, index, order, regions, out, norms, scale):
    check_shapes(qkv, table, index, order, regions, dout=dout, out=out, norms=norms)
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), torch.empty_like(table)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _autograd(ctx, dout, _):
    if dout is None:
        return (None,) * 6
    dqkv, dtable = torch.ops.qmambair.window_attention_backward(dout, *ctx.saved_tensors, ctx.scale)
    return dqkv, dtable, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
