"""Permutations of tokens as index tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def inverted(order: Tensor) -> Tensor:
    """Inverse of a permutation of range(n), (n,) int64."""
    places = torch.arange(order.shape[0], device=order.device)
    return torch.empty_like(places).index_put((order,), places)


def flat_order(order: Tensor) -> tuple[Tensor, Tensor]:
    """Turn one permutation per image, (B, L) int64, into a permutation of all B * L rows, and its inverse."""
    batch, length = order.shape
    start = torch.arange(batch, device=order.device).mul_(length).unsqueeze(1)
    flat = (order + start).flatten()
    return flat, inverted(flat)
