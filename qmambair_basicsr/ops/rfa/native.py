"""RFA on the C++ kernels of ``kernels/cpu``: one pass over w each way; signatures are those of ``reference.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..native_library import address, dense, function, is_available, threads
from . import reference

__all__ = ["DEVICES", "backward", "forward", "is_available"]

DEVICES = ("cpu",)
_MAX_LEVELS = 256


def forward(w: Tensor, scale: Tensor, offset: Tensor, thresholds: Tensor, qmin: int) -> Tensor:
    """See ``reference.forward``."""
    if thresholds.numel() > _MAX_LEVELS or w.numel() == 0:
        return reference.forward(w, scale, offset, thresholds, qmin)
    w, scale, offset, thresholds = (dense(t) for t in (w, scale, offset, thresholds))
    y = torch.empty_like(w)
    call = function("qm_rfa_forward", "ppipppifi")
    parameters = (address(scale), address(offset), address(thresholds))
    call(address(w), address(y), w.numel(), *parameters, thresholds.numel(), qmin, threads())
    return y


def backward(
    grad: Tensor, w: Tensor, scale: Tensor, offset: Tensor, thresholds: Tensor, qmin: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``reference.backward``."""
    if thresholds.numel() > _MAX_LEVELS or w.numel() == 0:
        return reference.backward(grad, w, scale, offset, thresholds, qmin)
    grad, w, scale, offset, thresholds = (dense(t) for t in (grad, w, scale, offset, thresholds))
    gradients = [torch.empty_like(t) for t in (w, scale, offset, thresholds)]
    call = function("qm_rfa_backward", "pppipppifpppi")
    parameters = (address(scale), address(offset), address(thresholds))
    dw, *others = (address(t) for t in gradients)
    call(address(grad), address(w), dw, w.numel(), *parameters, thresholds.numel(), qmin, *others, threads())
    return tuple(gradients)
