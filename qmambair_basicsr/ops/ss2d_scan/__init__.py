"""Selective scan of a feature map in several directions as one operator (SS2D: MambaIR, sec. 3.2; VMamba, sec. 4.2).

Every tensor is indexed at the raster position of its pixel; a direction reads the map in its own order and its output
is added at the pixel it belongs to, so no permuted copy of the map exists (the reference path makes them). The operator
is registered with torch as ``qmambair::ss2d_scan``: torch.compile and torch.export see one node with known shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backend import choose, export_target
from ..rounding import Rounding
from .checks import BACKENDS, check, named_codes, output_shape, paths_of, states_shape
from .orders import DIRECTIONS, named_order
from .rounded import ss2d_scan_rounded

__all__ = ["BACKENDS", "DIRECTIONS", "Rounding", "named_order", "scan", "ss2d_scan", "ss2d_scan_rounded"]


def ss2d_scan(
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
    order: torch.Tensor | None = None,
    merge: bool = True,
) -> torch.Tensor:
    """Scan a map in each direction and sum the outputs at their pixels, or keep them apart.

    In direction k, with t running over the pixels in that direction's order and
    ``dt = softplus(delta + delta_bias)``::

        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t . h_t + D x_t

    The state h is float32 (float64 for float64 inputs). Differentiable once in every tensor but order. Every tensor
    but order is indexed at raster positions, whatever the order.

    Args:
        x: (B, H, W, D), channels last, read by every direction; or (B, H, W, K, D), one map per direction. May be a
            non-contiguous view.
        delta: (B, H, W, K, D), step sizes before bias and softplus.
        A: (K, D, N), negative, i.e. ``-exp(A_logs)``.
        B, C: (B, H, W, K, N), input and output maps of the state.
        D: (K, D), skip weights, or None.
        delta_bias: (K, D), added to delta, or None.
        delta_softplus: apply softplus; otherwise delta + delta_bias must be non-negative already.
        directions: K of ``row`` (row-major), ``col`` (column-major), ``row_rev``, ``col_rev`` (the same backwards).
            SS2D uses all four in this order, MambaIRv2 ``("row",)`` with H = 1. None: all four.
        order: (K, H * W) int32 or int64, instead of ``directions``: entry [k, t] is the raster position i * W + j of
            the pixel that direction k visits at step t. Every row must be a permutation of range(H * W); that is
            checked once per tensor (and again after it was changed in place), so keep the tensor.
            :func:`named_order` gives the rows of named directions.
        merge: sum the outputs of the directions; otherwise hand each back.

    Returns:
        (B, H, W, D), or (B, H, W, K, D) with ``merge=False``, in x's dtype.

    Raises:
        ValueError: an unknown direction, a shape that does not fit (both shapes are named), an order that is no
            permutation, both ``directions`` and ``order``.
        TypeError: complex tensors.
    """
    named = named_codes(directions, order)
    return scan(x, delta, A, B, C, D, delta_bias, delta_softplus, named, order, merge)[0]


def scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
    directions: list[int],
    order: torch.Tensor | None = None,
    merge: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator under :func:`ss2d_scan` and ``selective_scan``, with direction codes.

    Args:
        directions: K codes; empty when ``order`` is given.
        others: as in :func:`ss2d_scan`.

    Returns:
        y, as :func:`ss2d_scan` returns it, and states (B, K, n, N, D) whose last entry in dimension 2 is the final
        state (not differentiable).
    """
    target = export_target()
    if target is not None:
        from . import onnx

        check(x, delta, A, B, C, D, delta_bias, order, directions)
        y = onnx.scan(x, delta, A, B, C, D, delta_bias, delta_softplus, directions, order, merge, target)
        return y, y.new_empty(0)  # a graph has no states to hand out
    save = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, delta, A, B, C, D, delta_bias)
    )
    return torch.ops.qmambair.ss2d_scan(
        x, delta, A, B, C, D, delta_bias, order, delta_softplus, directions, merge, save
    )


_INPUTS = "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor? order"


@torch.library.custom_op(
    "qmambair::ss2d_scan",
    mutates_args=(),
    schema=f"({_INPUTS}, bool softplus, int[] directions, bool merge, bool save_states) -> (Tensor, Tensor)",
)
def _forward(x, delta, A, B, C, D, delta_bias, order, softplus, directions, merge, save_states):
    check(x, delta, A, B, C, D, delta_bias, order, directions)
    module = choose("ss2d_scan", BACKENDS, x)
    paths = paths_of(x, A, order, directions)
    return module.forward(x, delta, A, B, C, D, delta_bias, softplus, paths, merge, save_states)


@_forward.register_fake
def _forward_fake(x, delta, A, B, C, D, delta_bias, order, softplus, directions, merge, save_states):
    check(x, delta, A, B, C, D, delta_bias, order, directions)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(output_shape(x, A, merge)), x.new_empty(states_shape(x, A, save_states), dtype=work)


@torch.library.custom_op(
    "qmambair::ss2d_scan_backward",
    mutates_args=(),
    schema=f"(Tensor dy, {_INPUTS}, Tensor states, bool softplus, int[] directions, bool merge) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(dy, x, delta, A, B, C, D, delta_bias, order, states, softplus, directions, merge):
    check(x, delta, A, B, C, D, delta_bias, order, directions)
    given, expected = (dy.shape, states.shape), (output_shape(x, A, merge), states_shape(x, A, True))
    if given != expected:
        raise ValueError(f"ss2d_scan: dy and states must have shapes {expected}, got {tuple(map(tuple, given))}")
    module = choose("ss2d_scan", BACKENDS, x)
    paths = paths_of(x, A, order, directions)
    grads = module.backward(dy, x, delta, A, B, C, D, delta_bias, states, softplus, paths)
    return tuple(x.new_empty(0) if g is None else g for g in grads)  # an operator returns tensors only


@_backward.register_fake
def _backward_fake(dy, x, delta, A, B, C, D, delta_bias, order, states, softplus, directions, merge):
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, delta, A, B, C, D, delta_bias))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.softplus, ctx.directions, ctx.merge, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _autograd(ctx, dy, _):
    *tensors, states = ctx.saved_tensors
    if dy is None:
        return (None,) * 12
    grads = torch.ops.qmambair.ss2d_scan_backward(dy, *tensors, states, ctx.softplus, ctx.directions, ctx.merge)
    return *(None if t is None else g for t, g in zip(tensors[:-1], grads, strict=True)), *(None,) * 5


_forward.register_autograd(_autograd, setup_context=_setup_context)
