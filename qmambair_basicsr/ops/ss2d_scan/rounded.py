"""The scan whose read-out sees its states rounded to a grid (quantized states, SPR2Q): ``qmambair::ss2d_scan_rounded``.

Only the read-out meets the grid; the recurrence is that of ``ss2d_scan``::

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t . Q(h_t) + D x_t

with Q the operator ``lsq`` of one step for all states, its gradients included. So a backend that has
``rounded_forward`` and ``rounded_backward`` never stores a state per pixel. For the others, and in float64, the states of
all pixels come from the backend's ordinary scan, in the open (``open_states.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backend import choose
from ..rounding import Rounding
from . import open_states
from .checks import BACKENDS, check, named_codes, output_shape, paths_of, states_shape


def ss2d_scan_rounded(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = True,
    directions: Sequence[str] | None = None,
    *,
    rounding: Rounding,
    order: torch.Tensor | None = None,
    merge: bool = True,
) -> torch.Tensor:
    """:func:`ss2d_scan` whose read-out sees the states rounded: ``y_t = C_t . Q(h_t) + D x_t``.

    The rounding is computed in the precision of the state. Differentiable once in every tensor but order, those of the
    rounding included. An exported graph has no form of it: quantize states in the open there (``archs/scan_states.py``).

    Args:
        rounding: Q.
        others: as in ``ss2d_scan``.

    Returns:
        (B, H, W, D), or (B, H, W, K, D) with ``merge=False``, in x's dtype.

    Raises:
        ValueError: as ``ss2d_scan``; a tensor of the rounding that is not one value, or one bound without the other.
        TypeError: as ``ss2d_scan``.
    """
    named = named_codes(directions, order)
    rounding = rounding.to(_work(x))
    tensors = (x, delta, A, B, C, D, delta_bias, *rounding.tensors)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    codes = rounding.qmin, rounding.qmax
    y, _ = torch.ops.qmambair.ss2d_scan_rounded(*tensors, order, *codes, delta_softplus, named, merge, save)
    return y


def _work(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check(x, delta, A, B, C, D, delta_bias, rounding: Rounding, order, directions) -> None:
    check(x, delta, A, B, C, D, delta_bias, order, directions)
    rounding.check("ss2d_scan", x)


def _states(x, A, save_states) -> tuple[int, ...]:
    """Shape of what is kept for the backward pass: nothing where that works out all states anew."""
    fused = hasattr(choose("ss2d_scan", BACKENDS, x), "rounded_forward")
    return states_shape(x, A, save_states) if fused else (0,)


_INPUTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, "
    "Tensor scale, Tensor? offset, Tensor? lower, Tensor? upper, Tensor? order"
)
_CODES = "int qmin, int qmax"


def _read(given: Sequence) -> tuple:
    """Arguments in the order of the schema -> x to delta_bias, the rounding, order, and what stands behind the codes."""
    scale, offset, lower, upper, order, qmin, qmax, *others = given[7:]
    return *given[:7], Rounding(scale, offset, qmin, qmax, lower, upper), order, *others


@torch.library.custom_op(
    "qmambair::ss2d_scan_rounded",
    mutates_args=(),
    schema=f"({_INPUTS}, {_CODES}, bool softplus, int[] directions, bool merge, bool save_states) -> (Tensor, Tensor)",
)
def _forward(*given):
    *inputs, rounding, order, softplus, directions, merge, save_states = _read(given)
    _check(*inputs, rounding, order, directions)
    x, _, A, *_ = inputs
    module = choose("ss2d_scan", BACKENDS, x)
    given = (*inputs, rounding, softplus, paths_of(x, A, order, directions), merge)
    if hasattr(module, "rounded_forward"):
        return module.rounded_forward(*given, save_states)
    return open_states.forward(module, *given), x.new_empty(0, dtype=_work(x))


@_forward.register_fake
def _forward_fake(*given):
    *inputs, rounding, order, _, directions, merge, save_states = _read(given)
    _check(*inputs, rounding, order, directions)
    x, _, A, *_ = inputs
    return x.new_empty(output_shape(x, A, merge)), x.new_empty(_states(x, A, save_states), dtype=_work(x))


@torch.library.custom_op(
    "qmambair::ss2d_scan_rounded_backward",
    mutates_args=(),
    schema=f"(Tensor dy, {_INPUTS}, Tensor states, {_CODES}, bool softplus, int[] directions, bool merge) -> ("
    + ", ".join(["Tensor"] * 11)
    + ")",
)
def _backward(dy, *given):
    *given, states, qmin, qmax, softplus, directions, merge = given
    *inputs, rounding, order = _read((*given, qmin, qmax))
    _check(*inputs, rounding, order, directions)
    x, _, A, *_ = inputs
    shapes, expected = (dy.shape, states.shape), (output_shape(x, A, merge), _states(x, A, True))
    if shapes != expected:
        raise ValueError(f"ss2d_scan: dy and states must have shapes {expected}, got {tuple(map(tuple, shapes))}")
    module = choose("ss2d_scan", BACKENDS, x)
    paths = paths_of(x, A, order, directions)
    if hasattr(module, "rounded_backward"):
        grads = module.rounded_backward(dy, *inputs, states, rounding, softplus, paths)
    else:
        grads = open_states.backward(module, dy, *inputs, rounding, softplus, paths)
    return tuple(x.new_empty(0) if g is None else g for g in grads)  # an operator returns tensors only


@_backward.register_fake
def _backward_fake(_, x, *others):
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, *others[:10]))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.qmin, ctx.qmax, ctx.softplus, ctx.directions, ctx.merge, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _autograd(ctx, dy, _):
    *tensors, states = ctx.saved_tensors
    if dy is None:
        return (None,) * 18
    settings = ctx.qmin, ctx.qmax, ctx.softplus, ctx.directions, ctx.merge
    grads = torch.ops.qmambair.ss2d_scan_rounded_backward(dy, *tensors, states, *settings)
    return *(None if t is None else g for t, g in zip(tensors[:-1], grads, strict=True)), *(None,) * 7


_forward.register_autograd(_autograd, setup_context=_setup_context)
