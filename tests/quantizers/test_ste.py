"""Surrogate gradients: exact values, declared slopes."""

from __future__ import annotations

import torch

from qmambair_basicsr.quantizers.ste import positive, round_ste, round_tanh, scale_grad, tanh_slope


def _grad(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    y.sum().backward()
    return y.detach(), x.grad


def test_round_is_exact_with_slope_one():
    x = torch.randn(1000) * 1e5
    y, grad = _grad(round_ste, x)
    assert torch.equal(y, x.round())
    assert torch.equal(grad, torch.ones_like(x))


def test_tanh_rounding_slope_is_the_derivative_of_its_curve():
    x = torch.linspace(-3.37, 4.21, 501, dtype=torch.float64)
    y, grad = _grad(round_tanh, x)
    assert torch.equal(y, x.round())
    phi = lambda v: v.floor() + 0.5 + torch.tanh(v - v.floor() - 0.5) / (2 * torch.tanh(torch.tensor(0.5).double()))  # noqa: E731
    torch.testing.assert_close(grad, (phi(x + 1e-6) - phi(x - 1e-6)) / 2e-6, rtol=1e-6, atol=1e-8)
    ends = tanh_slope(torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(ends, torch.tensor([0.851, 1.082]), rtol=1e-3, atol=0)


def test_scale_grad_changes_the_gradient_only():
    x = torch.randn(10)
    y, grad = _grad(lambda t: scale_grad(t, 0.25), x)
    assert torch.equal(y, x)
    assert torch.equal(grad, torch.full_like(x, 0.25))
    assert torch.equal(_grad(lambda t: scale_grad(t, torch.tensor(0.5)), x)[1], torch.full_like(x, 0.5))


def test_positive_passes_gradients_through_zero():
    y, grad = _grad(lambda t: positive(t, 0.1), torch.tensor([2.0, 0.01, 0.0, -0.01, -2.0]))
    assert torch.equal(y, torch.tensor([2.0, 0.1, 0.1, 0.1, 2.0]))
    assert torch.equal(grad, torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]))
