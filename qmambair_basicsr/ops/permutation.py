"""Permutations of tokens as index tensors, and reordering by them."""

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


class _PermuteTokens(torch.autograd.Function):
    """index_select whose backward is the inverse index_select instead of a scattered addition."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.flatten(0, 1).index_select(0, order).view(x.shape)

    @staticmethod
    def backward(ctx, grad: Tensor):
        order, inverse = ctx.saved_tensors
        return _PermuteTokens.apply(grad, inverse, order), None, None


def permute_tokens(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Reorder the tokens of x (B, L, C) by flat permutations of range(B * L); see :func:`flat_order`."""
    return _PermuteTokens.apply(x, order, inverse)
