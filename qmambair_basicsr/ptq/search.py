"""Searches for the bounds of a uniform quantizer that leave the least error on calibration data.

=================== ============================================================ =========================================
:func:`dobi`        both ends inwards, or the upper one alone; least L2          2DQuant (NeurIPS 2024), SPR2Q
:func:`clip_search` both ends inwards by alpha times the range; least L2.4       PTQ4VM (CVPR 2025), activations
:func:`step_search` step = i / 100 of the largest magnitude; least L2.4          PTQ4VM, weights, symmetric
=================== ============================================================ =========================================

The first of equal errors wins, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 100
_ELEMENTS = 2**24  # of the largest tensor that is made


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

    def bounds(i: Tensor) -> tuple[Tensor, Tensor]:
        return (low if one_sided else low + step * i), high - step * i

    def error(i: Tensor) -> Tensor:
        lo, hi = bounds(i)
        return torch.linalg.vector_norm(rows - quantized(rows, lo[..., None], hi[..., None], bits), dim=-1)

    return bounds(_least(error, rows, range(STEPS), 0))


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

    def bounds(i: Tensor) -> tuple[Tensor, Tensor]:
        return low + width * (i / STEPS), high - width * (i / STEPS)

    def error(i: Tensor) -> Tensor:
        return (_affine_quantized(rows, *_affine(*bounds(i), bits), bits) - rows).abs().pow(norm).mean(-1)

    lower, upper = bounds(_least(error, rows, range(1, STEPS + 1), 0))
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

    def steps(i: Tensor) -> Tensor:
        return (largest * (i / STEPS) / top).clamp_min(torch.finfo(rows.dtype).tiny)

    def error(i: Tensor) -> Tensor:
        step = steps(i)[..., None]
        return (torch.round(rows / step).clamp(-top, top) * step - rows).abs().pow(norm).mean(-1)

    return steps(_least(error, rows, range(1, STEPS + 1), STEPS))


def _at_once(rows: Tensor) -> int:
    """Candidates that are tried together: where a launch costs more than what it computes, many."""
    return 1 if rows.device.type == "cpu" else max(1, _ELEMENTS // rows.numel())


def _least(error: Callable[[Tensor], Tensor], rows: Tensor, candidates: range, default: int) -> Tensor:
    """The candidate of least error of each row, (G,); the first of equal ones, ``default`` where no error is finite.

    Args:
        error: candidates (n, 1) -> errors, (n, G).
        rows: what is quantized, (G, M).
        candidates: numbers.
        default: see above.
    """
    numbers = torch.arange(candidates.start, candidates.stop, device=rows.device, dtype=rows.dtype)
    best = torch.full_like(rows[:, 0], torch.inf)
    chosen = torch.full_like(best, default)
    for some in numbers.split(_at_once(rows)):
        errors = error(some[:, None])  # (n, G)
        errors = torch.where(errors.isnan(), torch.inf, errors)
        least = errors.amin(0)
        first = torch.where(errors == least, some[:, None], candidates.stop).amin(0)
        better = least < best
        best, chosen = torch.where(better, least, best), torch.where(better, first, chosen)
    return chosen


def _affine(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    step = ((upper - lower) / (2**bits - 1)).clamp_min(torch.finfo(lower.dtype).eps)
    return step, torch.round(-lower / step).clamp(0, 2**bits - 1)


def _affine_quantized(rows: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    codes = (torch.round(rows / step[..., None]) + zero[..., None]).clamp(0, 2**bits - 1)
    return (codes - zero[..., None]) * step[..., None]
