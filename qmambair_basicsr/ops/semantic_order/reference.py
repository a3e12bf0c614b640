"""Semantic order in plain PyTorch, any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..permutation import flat_order

DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")


def is_available() -> tuple[bool, str]:
    """Always: it needs torch only."""
    return True, "plain PyTorch"


def forward(picked: Tensor, prompts: int, block: int) -> tuple[Tensor, Tensor]:
    """See ``semantic_order``."""
    return flat_order(torch.sort(picked, dim=-1, stable=True).indices)
