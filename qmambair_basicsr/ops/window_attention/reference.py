"""Window attention in plain PyTorch; autograd differentiates it, any number of times and in any precision."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda")


def is_available() -> tuple[bool, str]:
    """Always."""
    return True, "plain PyTorch"


def forward(qkv: Tensor, table: Tensor, index: Tensor, order: Tensor, regions: Tensor | None, scale: float) -> Tensor:
    """See ``window_attention``."""
    from . import MASKED

    batch, length, channels = qkv.shape
    windows, tokens = order.shape
    heads = table.shape[1]
    cut = qkv[:, order.flatten()].view(batch, windows, tokens, 3, heads, channels // 3 // heads)
    q, k, v = cut.permute(3, 0, 1, 4, 2, 5)  # (B, windows, heads, T, channels of a head) each
    logits = (q * scale) @ k.transpose(-2, -1) + table[index].permute(2, 0, 1)
    if regions is not None:
        apart = regions.unsqueeze(2) != regions.unsqueeze(1)
        logits = logits + (apart * MASKED).to(logits.dtype).unsqueeze(1)
    out = (logits.softmax(-1) @ v).transpose(2, 3).reshape(batch, length, channels // 3)
    inverse = torch.empty_like(order.flatten())
    inverse[order.flatten()] = torch.arange(length, device=order.device)
    return out[:, inverse]
