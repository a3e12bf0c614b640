"""How far two results are apart, as the benchmarks here judge it."""

from __future__ import annotations

import torch


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest deviation over the largest value; infinite where either holds NaN or infinity.

    Never NaN: ``max`` of Python passes over it, and a backend that computes nothing but NaN would agree.
    """
    if not bool(torch.isfinite(got).all()) or not bool(torch.isfinite(want).all()):
        return float("inf")
    got, want = got.detach().to(want.device).double(), want.detach().double()
    return ((got - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
