"""Order that brings tokens with the same prompt together (MambaIRv2's semantic guided neighbouring, sec. 3.2)."""

from __future__ import annotations

from torch import Tensor

from ..backend import choose

BACKENDS = ("reference",)


def semantic_order(picked: Tensor, prompts: int, block: int = 1) -> tuple[Tensor, Tensor]:
    """Sort the tokens of every image by their prompts.

    The sort is stable, raster order decides within a prompt; the official code leaves ties open.

    Args:
        picked: Prompt index of every token, (B, L) int64 in range(prompts).
        prompts: Number of prompts.
        block: A divisor of L, of no effect on the result: an exported graph counts in blocks of as many tokens.

    Returns:
        Flat permutation of all tokens and its inverse, (B * L) each, as ``permutation.flat_order`` makes them.
    """
    return choose("semantic_order", BACKENDS, picked).forward(picked, prompts, block)
