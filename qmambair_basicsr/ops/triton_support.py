"""Shared by the Triton backends: whether Triton can run here, and on which devices."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable

import torch

# Triton reads the variable when a kernel is defined, so it has to be set before the first import of a kernel module
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


def is_available() -> tuple[bool, str]:
    """Whether Triton kernels can run on this machine, and why (not)."""
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed (pip install triton)"
    if INTERPRETED:
        return _interpreter()
    if not torch.cuda.is_available():
        return False, "no CUDA device (TRITON_INTERPRET=1 runs the kernels in Triton's interpreter, for tests)"
    if torch.version.cuda is not None and torch.cuda.get_device_capability() < (7, 0):
        return False, f"{torch.cuda.get_device_name()} is older than compute capability 7.0"
    return True, f"Triton on {torch.cuda.get_device_name()}"


@functools.cache
def _interpreter() -> tuple[bool, str]:
    """Whether Triton's interpreter works here: with NumPy 2.4 that of Triton 3.6 fails, with NumPy 2 that of 3.0 lies."""
    from .triton_math import count_up

    out, steps = torch.zeros(4), torch.tensor([3.0, 5.0, 7.0, 9.0])
    try:
        count_up[(1,)](out, steps)
    except Exception as error:  # whatever the interpreter raises, it cannot be used
        return False, f"Triton's interpreter fails here: {error}"
    if out.tolist() != [9.0, 15.0, 0.0, 0.0]:
        return False, "Triton's interpreter computes wrong numbers with this NumPy"
    return True, "interpreted (TRITON_INTERPRET=1): for tests, slow"


def on_its_device(function: Callable) -> Callable:
    """Make a function whose first argument is a tensor launch on that tensor's GPU, not on the current one."""

    @functools.wraps(function)
    def launch(tensor: torch.Tensor, *rest):
        if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
            return function(tensor, *rest)
        with torch.cuda.device_of(tensor):
            return function(tensor, *rest)

    return launch


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()


@functools.cache
def direction_codes(directions: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Codes of named directions in a device's memory, int32; made once, so that no later call copies from the host."""
    return torch.tensor(directions, dtype=torch.int32, device=device)
