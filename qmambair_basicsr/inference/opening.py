"""From a file of weights to a :class:`Restorer`."""

from __future__ import annotations

import os

import torch

from ..artifacts.packed import load_packed
from .backends import device_of
from .restorer import Restorer
from .shipped import task_of, weights_of

__all__ = ["open_restorer"]


def open_restorer(
    path: str | os.PathLike, backend: str = "auto", device: str = "cpu", threads: int | None = None, half: bool = False
) -> Restorer:
    """See :func:`qmambair_basicsr.inference.open`."""
    chosen, file = device_of(device), weights_of(path)
    if threads is not None:
        torch.set_num_threads(threads)
    return Restorer(load_packed(file), backend, chosen, half, task_of(file))
