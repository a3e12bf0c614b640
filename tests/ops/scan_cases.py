"""Inputs of the scan tests."""

from __future__ import annotations

import torch

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
DIRECTIONS = ("row", "col", "row_rev", "col_rev")


def make(batch, height, width, directions, channels, state, *, steps=(1e-3, 0.1), rate=16.0, softplus=True, seed=1):
    """Random float32 inputs of ``ss2d_scan``: dt log-uniform in ``steps``, -A log-uniform in [1, rate].

    The same on every machine: torch's float32 normal numbers differ in the last bit between instruction sets, those of
    float64 rarely do once they are rounded.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).float()

    def log_uniform(low, high, *shape):
        low, high = torch.tensor([low, high], dtype=torch.float64).log()
        return torch.exp(low + (high - low) * torch.rand(*shape, generator=g, dtype=torch.float64))

    pixels = (batch, height, width, directions)
    dt = log_uniform(*steps, *pixels, channels)
    bias = normal(directions, channels) if softplus else torch.zeros(directions, channels)
    delta = (torch.expm1(dt).log() - bias) if softplus else dt
    tensors = (
        normal(batch, height, width, channels),
        delta.float(),
        -log_uniform(1.0, rate, directions, channels, state).float(),
        normal(*pixels, state),
        normal(*pixels, state),
        normal(directions, channels),
        bias,
    )
    return dict(zip(NAMES, tensors, strict=True))


def relative_error(got, want):
    """Largest deviation over the largest value."""
    return ((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30)).item()
