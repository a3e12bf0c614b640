"""Searches for the initial grid with the least squared error on calibration data."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLES = 4096  # values per row that a search looks at
CUTS = 12  # positions tried for each end of an interval
STRIDE = 2654435761  # a prime: a plain stride would meet the same few channels of a channels-last tensor


def subsample(rows: Tensor, count: int) -> Tensor:
    """About ``count`` values of each row of (G, M), spread over it; the same ones every time."""
    size = rows.shape[1]
    if size <= count:
        return rows
    return rows[:, torch.arange(count, device=rows.device) * STRIDE % size]


def best_interval(rows: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """Ends of the interval whose uniform grid has the least squared error on each row.

    Args:
        rows: (G, M).
        intervals: number of grid steps between the ends.

    Returns:
        Lower and upper ends, (G,) each: the best pair of ``CUTS`` x ``CUTS`` between the row's mean and its
        extremes, judged on at most ``SAMPLES`` values.
    """
    low, high = rows.aminmax(dim=1)
    mean = rows.mean(1)
    share = torch.linspace(1, 0.1, CUTS, device=rows.device, dtype=rows.dtype)
    some = subsample(rows, SAMPLES)
    unit = torch.maximum(low.abs(), high.abs()).clamp_min(torch.finfo(rows.dtype).tiny)
    best = torch.full_like(low, torch.inf)
    ends = [low, high]
    for a in share:
        lower = mean + (low - mean) * a
        upper = mean[:, None] + (high - mean)[:, None] * share
        step = ((upper - lower[:, None]) / intervals).clamp_min(1e-12)[:, :, None]
        level = ((some - lower[:, None])[:, None] / step).round().clamp(0, intervals)
        # in units of the largest magnitude, so that an outlier's square does not overflow
        error = ((level * step + lower[:, None, None] - some[:, None]) / unit[:, None, None]).square().mean(2)
        least, which = error.min(1)
        better = least < best
        best = torch.where(better, least, best)
        ends = [
            torch.where(better, new, old)
            for new, old in zip((lower, upper.gather(1, which[:, None])[:, 0]), ends, strict=True)
        ]
    return ends[0], ends[1]


def best_common_step(rows: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """One step for all rows, and where each row's uniform grid begins, for the least squared error.

    Args:
        rows: (G, M).
        intervals: number of grid steps of a row.

    Returns:
        Step (1,) and lower ends (G,): the step of the best interval of all rows about their own means, then for each row
        the best of ``2 CUTS + 1`` places, from one step below to one above.
    """
    mean = rows.mean(1)
    some = subsample(rows, max(1, 16 * SAMPLES // len(rows)))
    about = some - mean[:, None]
    low, high = best_interval(about.reshape(1, -1), intervals)
    step = ((high - low) / intervals).clamp_min(1e-12)
    shifts = torch.linspace(-1, 1, 2 * CUTS + 1, device=rows.device, dtype=rows.dtype)
    shifts = shifts[shifts.abs().argsort(stable=True)]  # of equally good ones the smallest
    best, chosen = torch.full_like(mean, torch.inf), torch.zeros_like(mean)
    for shift in shifts:
        start = low + shift * step
        level = ((about - start) / step).round().clamp(0, intervals)
        error = ((level * step + start - about) / step).square().mean(1)
        better = error < best
        chosen = torch.where(better, start.expand_as(mean), chosen)
        best = torch.where(better, error, best)
    return step, mean + chosen


def best_symmetric_step(rows: Tensor, start: Tensor, qmin: int, qmax: int, shift: float = 0.0) -> Tensor:
    """Step of the grid ``qmin..qmax`` about zero with the least squared error on each row.

    Args:
        rows: (G, M).
        start: (G,), steps > 0; multiples of it between 0.25 and 2 are tried.
        qmin, qmax: smallest and largest code.
        shift: of every level, in steps.
    """
    some = subsample(rows, SAMPLES)
    unit = start[:, None].clamp_min(torch.finfo(rows.dtype).tiny)
    best, chosen = torch.full_like(start, torch.inf), start
    for factor in torch.logspace(-2, 1, 25, base=2, device=rows.device, dtype=rows.dtype):
        step = start * factor
        level = (some / step[:, None] - shift).round().clamp(qmin, qmax) + shift
        error = ((level * step[:, None] - some) / unit).square().mean(1)
        chosen = torch.where(error < best, step, chosen)
        best = torch.minimum(error, best)
    return chosen
