"""Selective scan of a feature map in several directions as one operator (SS2D: MambaIR, sec. 3.2; VMamba, sec. 4.2).

Every tensor is indexed at the raster position of its pixel; a direction reads the map in its own order and its output
is added at the pixel it belongs to, so no permuted copy of the map exists (the reference path makes them). The operator
is registered with torch as ``qmambair::ss2d_scan``: torch.compile and torch.export see one node with known shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backend import choose, export_target

BACKENDS = ("native", "triton", "mamba_ssm", "reference")
DIRECTIONS = ("row", "col", "row_rev", "col_rev")  # the index is the code that backends get


def ss2d_scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = True,
    directions: Sequence[str] = DIRECTIONS,
) -> torch.Tensor:
    """Scan a map in each direction and sum the outputs at their pixels.

    In direction k, with t running over the pixels in that direction's order and
    ``dt = softplus(delta + delta_bias)``::

        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t . h_t + D x_t

    The state h is float32 (float64 for float64 inputs). Differentiable once in every tensor.

    Args:
        x: (B, H, W, D), channels last; may be a non-contiguous view.
        delta: (B, H, W, K, D), step sizes before bias and softplus.
        A: (K, D, N), negative, i.e. ``-exp(A_logs)``.
        B, C: (B, H, W, K, N), input and output maps of the state.
        D: (K, D), skip weights, or None.
        delta_bias: (K, D), added to delta, or None.
        delta_softplus: apply softplus; otherwise delta + delta_bias must be non-negative already.
        directions: K of ``row`` (row-major), ``col`` (column-major), ``row_rev``, ``col_rev`` (the same backwards).
            SS2D uses all four in this order, MambaIRv2 ``("row",)`` with H = 1.

    Returns:
        (B, H, W, D) in x's dtype.

    Raises:
        ValueError: an unknown direction, or a shape that does not fit; both shapes are named.
    """
    codes = []
    for name in directions:
        if name not in DIRECTIONS:
            raise ValueError(f"ss2d_scan: direction {name!r} is unknown; use {', '.join(DIRECTIONS)}")
        codes.append(DIRECTIONS.index(name))
    if x.dim() != 4:
        raise ValueError(f"ss2d_scan: x must be (B, H, W, D), got shape {tuple(x.shape)}")
    return scan(x, delta, A, B, C, D, delta_bias, delta_softplus, codes)[0]


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator under :func:`ss2d_scan` and ``selective_scan``, with direction codes.

    Args:
        x: (B, H, W, D) shared by all directions, outputs summed; or (B, H, W, K, D), each direction with its own map
            and its own output.
        others: as in :func:`ss2d_scan`.

    Returns:
        y, shaped as x, and states (B, K, n, N, D) whose last entry in dimension 2 is the final state (not
        differentiable).
    """
    batch, height, width = x.shape[:3]
    count, channels, state = len(directions), x.shape[-1], A.shape[-1]
    pixels = (batch, height, width, count)
    expected = {
        "x": (x, (*pixels, channels) if x.dim() == 5 else (batch, height, width, channels)),
        "delta": (delta, (*pixels, channels)),
        "A": (A, (count, channels, state)),
        "B": (B, (*pixels, state)),
        "C": (C, (*pixels, state)),
        "D": (D, (count, channels)),
        "delta_bias": (delta_bias, (count, channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"ss2d_scan: {name} must have shape {shape} for x {tuple(x.shape)}, {count} directions and "
                f"N = {state}; got {tuple(tensor.shape)}"
            )
    tensors = [t for t, _ in expected.values() if t is not None]
    if any(t.is_complex() for t in tensors):
        raise TypeError("ss2d_scan: complex tensors are not supported (the models of this package are real)")
    if 0 in x.shape:
        raise ValueError(f"ss2d_scan: x is empty, shape {tuple(x.shape)}")
    target = export_target()
    if target is not None:
        from . import onnx

        y = onnx.scan(x, delta, A, B, C, D, delta_bias, delta_softplus, directions, target)
        return y, y.new_empty(0)  # a graph has no states to hand out
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return torch.ops.qmambair.ss2d_scan(x, delta, A, B, C, D, delta_bias, delta_softplus, directions, save)


_INPUTS = "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias"


@torch.library.custom_op(
    "qmambair::ss2d_scan",
    mutates_args=(),
    schema=f"({_INPUTS}, bool softplus, int[] directions, bool save_states) -> (Tensor, Tensor)",
)
def _forward(x, delta, A, B, C, D, delta_bias, softplus, directions, save_states):
    module = choose("ss2d_scan", BACKENDS, x)
    return module.forward(x, delta, A, B, C, D, delta_bias, softplus, directions, save_states)


@_forward.register_fake
def _forward_fake(x, delta, A, B, C, D, delta_bias, softplus, directions, save_states):
    chunk = choose("ss2d_scan", BACKENDS, x).CHUNK
    chunks = (x.shape[1] * x.shape[2] + chunk - 1) // chunk if save_states else 1
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (x.shape[0], len(directions), chunks, A.shape[2], A.shape[1])
    return x.new_empty(x.shape), x.new_empty(shape, dtype=work)


@torch.library.custom_op(
    "qmambair::ss2d_scan_backward",
    mutates_args=(),
    schema=f"(Tensor dy, {_INPUTS}, Tensor states, bool softplus, int[] directions) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(dy, x, delta, A, B, C, D, delta_bias, states, softplus, directions):
    module = choose("ss2d_scan", BACKENDS, x)
    grads = module.backward(dy, x, delta, A, B, C, D, delta_bias, states, softplus, directions)
    return tuple(x.new_empty(0) if g is None else g for g in grads)  # an operator returns tensors only


@_backward.register_fake
def _backward_fake(dy, x, delta, A, B, C, D, delta_bias, states, softplus, directions):
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, delta, A, B, C, D, delta_bias))


def _setup_context(ctx, inputs, output):
    *tensors, softplus, directions, _ = inputs
    ctx.softplus, ctx.directions = softplus, directions
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _autograd(ctx, dy, _):
    *tensors, states = ctx.saved_tensors
    if dy is None:
        return (None,) * 10
    grads = torch.ops.qmambair.ss2d_scan_backward(dy, *tensors, states, ctx.softplus, ctx.directions)
    return *(None if t is None else g for t, g in zip(tensors, grads, strict=True)), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
