"""What the scan's operators ask of their inputs, and the shapes of what they return."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backend import choose
from .orders import DIRECTIONS, check_form, codes, verified

BACKENDS = ("native", "cuda", "triton", "mamba_ssm", "reference")


def named_codes(directions: Sequence[str] | None, order: torch.Tensor | None) -> list[int]:
    """Codes of the named directions, all four without names; none where there is an order.

    Raises:
        ValueError: both are given, or an order that is no tensor.
    """
    if order is not None and directions is not None:
        raise ValueError(
            "ss2d_scan: give directions or order, not both; named_order gives the rows of named directions"
        )
    if order is not None and not isinstance(order, torch.Tensor):
        raise ValueError(f"ss2d_scan: order must be a tensor (K, H * W), got {type(order).__name__}")
    return [] if order is not None else codes(DIRECTIONS if directions is None else directions)


def check(x, delta, A, B, C, D, delta_bias, order, directions) -> None:
    """Dtypes, devices and shapes of an operator's inputs, traced or real; values of an order aside."""
    if x.dim() not in (4, 5):
        raise ValueError(f"ss2d_scan: x must be (B, H, W, D) or (B, H, W, K, D), got shape {tuple(x.shape)}")
    if A.dim() != 3:
        raise ValueError(f"ss2d_scan: A must be (K, D, N), got shape {tuple(A.shape)}")
    batch, height, width = x.shape[:3]
    count, channels, state = (A.shape[0] if order is not None else len(directions)), x.shape[-1], A.shape[-1]
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
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"ss2d_scan: {name} must have shape {shape} for x {tuple(x.shape)}, {count} directions and "
                f"N = {state}; got {tuple(tensor.shape)}"
            )
        if tensor.is_complex():
            raise TypeError("ss2d_scan: complex tensors are not supported (the models of this package are real)")
        if tensor.device != x.device:
            raise ValueError(f"ss2d_scan: {name} is on {tensor.device}, x on {x.device}")
    if 0 in x.shape or 0 in A.shape:
        raise ValueError(f"ss2d_scan: empty input, x {tuple(x.shape)} and A {tuple(A.shape)}")
    if order is None:
        if not all(0 <= code < len(DIRECTIONS) for code in directions):
            raise ValueError(f"ss2d_scan: direction codes are 0 to {len(DIRECTIONS) - 1}, got {directions}")
        return
    if directions:
        raise ValueError(f"ss2d_scan: give directions or order, not both; got directions {directions}")
    if order.device != x.device:
        raise ValueError(f"ss2d_scan: order is on {order.device}, x on {x.device}")
    check_form(order, count, height * width)


def paths_of(x, A, order, directions) -> list[int] | torch.Tensor:
    """Orders as backends get them: direction codes, or index lists that have been checked."""
    return directions if order is None else verified(order, A.shape[0], x.shape[1] * x.shape[2])


def output_shape(x, A, merge) -> tuple[int, ...]:
    """Of y."""
    return (*x.shape[:3], x.shape[-1]) if merge else (*x.shape[:3], A.shape[0], x.shape[-1])


def states_shape(x, A, save_states) -> tuple[int, ...]:
    """Of the states that the backend of these tensors keeps."""
    module = choose("ss2d_scan", BACKENDS, x)
    chunk = module.chunk_of(x, A) if hasattr(module, "chunk_of") else module.CHUNK
    chunks = (x.shape[1] * x.shape[2] + chunk - 1) // chunk if save_states else 1
    return x.shape[0], A.shape[0], chunks, A.shape[2], A.shape[1]
