"""Searches for the bounds of a uniform quantizer that leave the least error on calibration data.

=================== ============================================================ =========================================
:func:`dobi`        both ends inwards, or the upper one alone; least L2          2DQuant (NeurIPS 2024), SPR2Q
:func:`clip_search` both ends inwards by alpha times the range; least L2.4       PTQ4VM (CVPR 2025), activations
:func:`step_search` step = i / 100 of the largest magnitude; least L2.4          PTQ4VM, weights, symmetric
=================== ============================================================ =========================================

The first of equal errors wins, as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 100


def quantized(x: Tensor, lower: Tensor, upper: Tensor, bits: int) -> Tensor:
    """``round((clip(x, l, u) - l) / s) s + l`` with ``s = (u - l) / (2^n - 1)``; bounds broadcast to x."""
    intervals = 2**bits - 1
    step = (upper - lower) / intervals
    clipped = torch.minimum(torch.maximum(x, lower), upper)
    return torch.round((clipped - lower) / step) * step + lower


def dobi(
    rows: Tensor, bits: int, one_sided: bool = False, ends: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Distribution-oriented bound initialisation of 2DQuant: 100 shrunken ranges, the first of least L2 error.

    The ends move inwards together by (max - min) / 200 a step, the last candidate leaves 1 % of the range; min and max
    themselves are the first one.

    Args:
        rows: values of each group, (G, M).
        bits: n.
        ends: smallest and largest value of each group, where the rows are a sample.
        one_sided: only the upper end moves, by (max - min) / 100 a step. The release has it and never uses it.

    Returns:
        Lower and upper bounds, (G,) each.
    """
    low, high = rows.aminmax(dim=1) if ends is None else ends
    step = (high - low) / (STEPS if one_sided else 2 * STEPS)
    best = torch.full_like(low, torch.inf)
    lower, upper = low, high
    for i in range(STEPS):
        lo, hi = (low if one_sided else low + step * i), high - step * i
        error = torch.linalg.vector_norm(rows - quantized(rows, lo[:, None], hi[:, None], bits), dim=1)
        better = error < best
        best = torch.where(better, error, best)
        lower, upper = torch.where(better, lo, lower), torch.where(better, hi, upper)
    return lower, upper


def clip_search(rows: Tensor, bits: int, norm: float = 2.4) -> tuple[Tensor, Tensor]:
    """PTQ4VM's search for activations: alpha = 1/100 .. 1, both ends inwards by alpha times the range.

    As released the full range is no candidate, and alpha above 1/2 turns the range inside out. The winner is extended to
    contain 0, which is when step and zero are computed: for values in [3, 4] the step becomes four times as coarse as
    searched.

    Args:
        rows: values of each token (or of everything), (G, M).
        bits: n.
        norm: exponent of the error.

    Returns:
        Step and zero (a whole number), (G,) each; codes lie in [0, 2^n - 1].
    """
    low, high = rows.aminmax(dim=1)
    width = high - low
    best = torch.full_like(low, torch.inf)
    lower, upper = low, high
    for i in range(1, STEPS + 1):
        lo, hi = low + width * (i / STEPS), high - width * (i / STEPS)
        step, zero = _affine(lo, hi, bits)
        error = (_affine_quantized(rows, step, zero, bits) - rows).abs().pow(norm).mean(1)
        better = error < best
        best = torch.where(better, error, best)
        lower, upper = torch.where(better, lo, lower), torch.where(better, hi, upper)
    return _affine(lower.clamp_max(0), upper.clamp_min(0), bits)


def step_search(rows: Tensor, bits: int, norm: float = 2.4) -> Tensor:
    """PTQ4VM's search for weights: the step of codes -(2^(n-1) - 1) .. 2^(n-1) - 1 that leaves the least error.

    Args:
        rows: weights of each output channel, (G, M).
        bits: n, at least 2.
        norm: exponent of the error.

    Returns:
        (G,), i / 100 of the largest magnitude over the largest code.
    """
    largest, top = rows.abs().amax(1), 2 ** (bits - 1) - 1
    best, chosen = torch.full_like(largest, torch.inf), largest / top
    for i in range(1, STEPS + 1):
        step = (largest * (i / STEPS) / top).clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
        error = (torch.round(rows / step).clamp(-top, top) * step - rows).abs().pow(norm).mean(1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, step[:, 0], chosen)
    return chosen


def _affine(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    step = ((upper - lower) / (2**bits - 1)).clamp_min(torch.finfo(lower.dtype).eps)
    return step, torch.round(-lower / step).clamp(0, 2**bits - 1)


def _affine_quantized(rows: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    codes = (torch.round(rows / step[:, None]) + zero[:, None]).clamp(0, 2**bits - 1)
    return (codes - zero[:, None]) * step[:, None]
