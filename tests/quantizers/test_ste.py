"""Surrogate gradients: exact values, declared slopes."""

from __future__ import annotations

import torch

from qmambair_basicsr.quantizers.ste import learned_step, positive, scale_grad, snap, soft_round


def _grad(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    y.sum().backward()
    return y.detach(), x.grad


def test_soft_round_follows_its_formula_and_slope():
    x = torch.linspace(-3.37, 4.21, 501, dtype=torch.float64)
    y, _ = _grad(soft_round, x)
    half = torch.tensor(0.5, dtype=torch.float64)
    fraction = x - x.floor()
    torch.testing.assert_close(y, x.floor() + 0.5 + torch.tanh(fraction - 0.5) / (2 * torch.tanh(half)))
    assert torch.equal(y.round(), x.round())
    assert torch.autograd.gradcheck(soft_round, (x.clone().requires_grad_(),))
    ends = _grad(soft_round, torch.tensor([0.0, 0.5]))[1]
    torch.testing.assert_close(ends, torch.tensor([0.851, 1.082]), rtol=1e-3, atol=0)


def test_snap_returns_the_value_with_the_gradient_of_the_curve():
    x = torch.randn(50, requires_grad=True)
    y = snap(x**3, x.detach().round())
    y.sum().backward()
    assert torch.equal(y, x.detach().round())
    torch.testing.assert_close(x.grad, 3 * x.detach() ** 2)


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


def test_learned_step_scales_the_gradient_of_the_step_in_use():
    x = torch.tensor([2.0, 0.01, 0.0, -2.0])
    y, grad = _grad(lambda t: learned_step(t, 0.1, 0.25), x)
    assert torch.equal(y, torch.tensor([2.0, 0.1, 0.1, 2.0]))
    assert torch.equal(grad, torch.tensor([0.25, 0.25, 0.25, -0.25]))
    y, grad = _grad(lambda t: learned_step(t, None, 0.25), x)
    assert torch.equal(y, x)
    assert torch.equal(grad, torch.full_like(x, 0.25))
