"""Maps as the GPU backends address them: by strides of images, tokens and directions, channels next to each other."""

from __future__ import annotations

import torch


def tokens(t: torch.Tensor) -> torch.Tensor:
    """(B, H, W, ...) as (B, L, ...) with neighbouring channels next to each other; a view wherever strides allow."""
    t = t.flatten(1, 2)
    return t if t.stride(-1) == 1 else t.contiguous()


def strides(t: torch.Tensor) -> tuple[int, int, int]:
    """Strides of image, token and direction of a tensor (B, L, K, C)."""
    return t.stride(0), t.stride(1), t.stride(2)


def per_direction(t: torch.Tensor, count: int) -> torch.Tensor:
    """(B, L, D), shared by all directions, as (B, L, K, D) without a copy; four dimensions stay as they are."""
    return t.unsqueeze(2).expand(-1, -1, count, -1) if t.dim() == 3 else t


def partial(like: torch.Tensor, length: int, count: int, merge: bool) -> torch.Tensor:
    """Output buffer of the directions: (K, B, L, D) seen as (B, L, K, D), summed afterwards, or the result itself."""
    batch, channels = like.shape[0], like.shape[-1]
    if not merge or count == 1:
        return like.new_empty(batch, length, count, channels)
    return like.new_empty(count, batch, length, channels, dtype=torch.float32).permute(1, 2, 0, 3)
