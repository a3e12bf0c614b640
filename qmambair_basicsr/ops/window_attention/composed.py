"""Window attention composed of torch's operators, windows of one kind of mask at a time: needs no (windows, T, T) mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..permutation import flat_order, permute_tokens


def windowed(
    attention: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    qkv: Tensor,
    table: Tensor,
    index: Tensor,
    order: Tensor,
    kinds: Sequence[tuple[int, Tensor | None]],
) -> Tensor:
    """Cut the windows out, let ``attention`` attend within them, and put the tokens back.

    Args:
        attention: function of q, k, v (n, heads, T, channels of a head) and bias, broadcastable to (n, heads, T, T);
            its result is shaped like q.
        qkv, table, index, order, kinds: as in ``window_attention``.

    Returns:
        (B, L, C), tokens at the positions they came from.
    """
    batch, length, channels = qkv.shape
    tokens, heads = index.shape[0], table.shape[1]
    order, inverse = flat_order(order.flatten().expand(batch, length))
    qkv = permute_tokens(qkv, order, inverse)
    qkv = qkv.view(batch, length // tokens, tokens, 3, heads, channels // 3 // heads)
    position = table[index.flatten()]
    position = position.view(1, tokens, tokens, heads).permute(0, 3, 1, 2).contiguous()  # (1, heads, T, T)
    outputs = []
    for windows, (_, mask) in zip(qkv.split([count for count, _ in kinds], 1), kinds, strict=True):
        q, k, v = windows.flatten(0, 1).permute(2, 0, 3, 1, 4)  # (B * windows, heads, T, channels of a head) each
        out = attention(q, k, v, position if mask is None else position + mask)
        outputs.append(out.transpose(1, 2).reshape(batch, -1, channels // 3))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return permute_tokens(out, inverse, order)
