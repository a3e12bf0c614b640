"""Projections of each direction: cut into parts they are what they are in one piece."""

from __future__ import annotations

import pytest
import torch

from qmambair_basicsr.archs import ss2d


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_add_up(parts, monkeypatch):
    x = torch.randn(2, 4, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 4, 3, 4, 6, dtype=torch.float64)
    want = (x.unsqueeze(-2) * weight).sum(-1)
    monkeypatch.setattr(ss2d, "_parts", lambda *_: parts)
    got = ss2d.by_direction(x, weight)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), grad) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_cpu_computes_in_one_piece():
    x, weight = torch.randn(2, 4, 3, 4, 5), torch.randn(4, 6, 5, requires_grad=True)
    assert ss2d._parts(x, weight) == 1
    assert torch.equal(ss2d.by_direction(x, weight), torch.einsum("bhwkr,kdr->bhwkd", x, weight))
