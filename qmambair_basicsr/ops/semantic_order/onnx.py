"""Semantic order as a counting sort.

The exporter has no stable sort, and TensorRT's TopK takes at most 3840 elements. A token's place is the number of tokens
with a smaller prompt, plus those before it with the same one. Counts within a block of tokens are matrix products of
zeros and ones (exact in FP16 and TF32 up to 2048), everything above is integer arithmetic. Runs in eager PyTorch too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..permutation import inverted


def forward(picked: Tensor, prompts: int, block: int) -> tuple[Tensor, Tensor]:
    """See ``semantic_order``; for a single image, (1, L): an exported network restores one at a time."""
    length = picked.shape[1]
    kinds = torch.arange(prompts)
    chosen = (picked.unsqueeze(-1) == kinds).view(length // block, block, prompts)
    inside = torch.ones(block, block).tril() @ chosen.float()  # with the token itself
    totals = inside[:, -1].to(torch.int32)  # (blocks, prompts)
    blocks = torch.arange(length // block)
    earlier = (blocks.unsqueeze(0) < blocks.unsqueeze(1)).unsqueeze(-1).to(torch.int32)
    before = (earlier * totals).sum(1, dtype=torch.int32)
    counts = totals.sum(0, dtype=torch.int32)
    start = (counts * (kinds.unsqueeze(0) < kinds.unsqueeze(1)).to(torch.int32)).sum(1, dtype=torch.int32)
    place = inside.to(torch.int32) + (before + start).unsqueeze(1)
    inverse = ((place * chosen.to(torch.int32)).sum(-1, dtype=torch.int32) - 1).flatten().long()
    return inverted(inverse), inverse
