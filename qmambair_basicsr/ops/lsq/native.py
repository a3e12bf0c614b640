"""LSQ on the C++ kernels of ``kernels/cpu``; signatures and meaning are those of ``reference.py``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..native_library import address, dense, function, is_available, threads
from . import reference

__all__ = ["DEVICES", "backward", "forward", "is_available"]

DEVICES = ("cpu",)


def _rows(x: Tensor, scale: Tensor, offset: Tensor | None, dim: int | None):
    """x as (rows, cols) where a row has one step and offset; None where rows would be single values.

    Returns:
        rows, cols, and step and offset with one entry per group of rows.
    """
    groups = max(scale.numel(), 1 if offset is None else offset.numel())
    if groups == 1:
        return 1, x.numel(), dense(scale), None if offset is None else dense(offset)
    cols = math.prod(x.shape[dim % x.ndim + 1 :])
    if cols < 16:
        return None
    step, offset = (None if t is None else dense(t.reshape(-1).expand(groups)) for t in (scale, offset))
    return x.numel() // cols, cols, step, offset


def forward(x: Tensor, scale: Tensor, offset: Tensor | None, qmin: int, qmax: int, dim: int | None) -> Tensor:
    """See ``reference.forward``."""
    layout = _rows(x, scale, offset, dim)
    if layout is None or x.numel() == 0:
        return reference.forward(x, scale, offset, qmin, qmax, dim)
    rows, cols, step, shift = layout
    x = dense(x)
    y = torch.empty_like(x)
    call = function("qm_lsq_forward", "ppiippiffi")
    call(address(x), address(y), rows, cols, address(step), address(shift), step.numel(), qmin, qmax, threads())
    return y


def backward(
    grad: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, qmin: int, qmax: int, dim: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See ``reference.backward``."""
    layout = _rows(x, scale, offset, dim)
    if layout is None or x.numel() == 0:
        return reference.backward(grad, x, scale, offset, qmin, qmax, dim)
    rows, cols, step, shift = layout
    grad, x = dense(grad), dense(x)
    dx, d_step = torch.empty_like(x), torch.empty_like(step)
    d_offset = None if shift is None else torch.empty_like(shift)
    addresses = [address(t) for t in (grad, x, dx)]
    call = function("qm_lsq_backward", "pppiippiffppi")
    call(
        *addresses,
        rows,
        cols,
        address(step),
        address(shift),
        step.numel(),
        qmin,
        qmax,
        address(d_step),
        address(d_offset),
        threads(),
    )
    return dx, _fit(d_step, scale), None if offset is None else _fit(d_offset, offset)


def _fit(grad: Tensor, parameter: Tensor) -> Tensor:
    """One entry per group, or their sum for a parameter with one entry."""
    return (grad if parameter.numel() == grad.numel() else grad.sum()).reshape(parameter.shape)
