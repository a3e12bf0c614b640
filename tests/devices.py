"""Where the tensors of a test have to lie, and where its subprocesses find what it imports."""

from __future__ import annotations

import os
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def device_for(backend: str) -> str:
    """The device that a backend's tensors belong on: a GPU for its kernels where there is one, else the CPU.

    Without a GPU Triton's kernels run in its interpreter and the CUDA kernels simulated, on the CPU.
    """
    return "cuda" if backend in ("cuda", "triton", "mamba_ssm") and torch.cuda.is_available() else "cpu"


def python_path() -> str:
    """``PYTHONPATH`` of a subprocess: this repository, then what this process was given."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
