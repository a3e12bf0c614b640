"""DLS on the C++ kernels of ``kernels/cpu``: two passes over x each way; the grid between them is worked out in C too.

Signatures and meaning are those of ``reference.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..native_library import address, dense, function, is_available, threads
from . import reference

__all__ = ["DEVICES", "backward", "forward", "is_available"]

DEVICES = ("cpu",)


def forward(x: Tensor, w: Tensor, v: Tensor, qmin: int, qmax: int, cap_share: float) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.forward``."""
    if x.numel() == 0:
        return reference.forward(x, w, v, qmin, qmax, cap_share)
    x, w, v = dense(x), dense(w), dense(v)
    y, stats, grid = torch.empty_like(x), x.new_empty(x.shape[0], 4), x.new_empty(x.shape[0], 4)
    call = function("qm_dls_forward", "ppiippffdppi")
    weights, results = (address(w), address(v)), (address(stats), address(grid))
    call(address(x), address(y), *x.shape, *weights, qmin, qmax, cap_share, *results, threads())
    return y, stats, grid


def backward(
    grad: Tensor, x: Tensor, w: Tensor, v: Tensor, stats: Tensor, used: Tensor, cap_share: float, grad_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.backward``."""
    if x.numel() == 0:
        return reference.backward(grad, x, w, v, stats, used, cap_share, grad_scale)
    tensors = [dense(t) for t in (grad, x, w, v, stats, used)]
    grad, x, w, v, stats, used = tensors
    dx, dw, dv = (torch.empty_like(t) for t in (x, w, v))
    call = function("qm_dls_backward", "pppiippppddppi")
    between = (address(w), address(v), address(stats), address(used))
    maps = (address(grad), address(x), address(dx))
    call(*maps, *x.shape, *between, cap_share, grad_scale, address(dw), address(dv), threads())
    return dx, dw, dv
