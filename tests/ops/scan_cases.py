"""Inputs of the scan tests and the recurrence as the papers write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
DIRECTIONS = ("row", "col", "row_rev", "col_rev")


def make(batch, height, width, directions, channels, state, *, steps=(1e-3, 0.1), rate=16.0, softplus=True, seed=1):
    """Random float32 inputs of ``ss2d_scan``: dt log-uniform in ``steps``, -A log-uniform in [1, rate]."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

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


def recurrence(x, delta, A, B, C, D=None, delta_bias=None, softplus=True, directions=DIRECTIONS):
    """``ss2d_scan`` pixel by pixel in plain autograd operations."""
    batch, height, width, channels = x.shape
    orders = {
        "row": [(i, j) for i in range(height) for j in range(width)],
        "col": [(i, j) for j in range(width) for i in range(height)],
    }
    total = torch.zeros_like(x)
    for k, name in enumerate(directions):
        order = orders[name.removesuffix("_rev")]
        h = x.new_zeros(batch, channels, A.shape[-1])
        values = {}
        for i, j in reversed(order) if name.endswith("_rev") else order:
            dt = delta[:, i, j, k] + (0 if delta_bias is None else delta_bias[k])
            dt = F.softplus(dt) if softplus else dt
            u = x[:, i, j]
            h = torch.exp(dt[..., None] * A[k]) * h + (dt * u)[..., None] * B[:, i, j, k, None]
            values[i, j] = (h * C[:, i, j, k, None]).sum(-1) + (0 if D is None else D[k] * u)
        rows = [torch.stack([values[i, j] for j in range(width)], 1) for i in range(height)]
        total = total + torch.stack(rows, 1)
    return total


def relative_error(got, want):
    """Largest deviation over the largest value."""
    return ((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30)).item()
