"""AnyOrder: sums of signs, for weights of every shape; ``test_encoded`` has what it shares with other codes."""

from __future__ import annotations

import pytest
import torch

from qmambair_basicsr.quantizers import AnyOrder, Site, SpecError
from qmambair_basicsr.quantizers.any_order import fit, sign_sums

SHAPES = [(6, 5), (4, 3, 3, 3), (5, 1, 3, 3), (2, 6, 4)]


def quantizer(shape, bits):
    return AnyOrder(bits, Site.of_weight(shape[0], shape=shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", AnyOrder.bit_widths)
def test_values_are_the_nearest_sums(shape, bits):
    torch.manual_seed(1)
    made, x = quantizer(shape, bits), torch.randn(shape)
    made.init_from(x)
    with torch.no_grad():
        y = made(x)
    again = quantizer(shape, bits)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x).detach(), y) and torch.equal(made.encode(x).values(), y)
    assert made.encode(x).codes.amin() >= made.qmin and made.encode(x).codes.amax() <= made.qmax
    rows, columns = made.rows.detach(), made.columns.detach()
    for index, (matrix, values) in enumerate(zip(made.matrices(x), made.matrices(y), strict=True)):
        sums = sign_sums(rows[:, index], columns[:, index])
        torch.testing.assert_close((values - matrix).abs(), (sums - matrix).abs().amin(0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_more_orders_leave_less_error_and_gradients_are_there(shape):
    torch.manual_seed(2)
    x, errors = torch.randn(shape), []
    for bits in AnyOrder.bit_widths:
        made, given = quantizer(shape, bits).train(), x.clone().requires_grad_()
        y = made(given)
        y.square().sum().backward()
        assert torch.equal(given.grad, 2 * y.detach())
        assert made.rows.grad.abs().sum() > 0 and made.columns.grad.abs().sum() > 0
        errors.append((y - x).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1 * errors[0]


def test_fit_follows_the_importance():
    torch.manual_seed(3)
    weight = torch.randn(12, 16)
    importance = torch.ones_like(weight)
    importance[:, 3] = 100
    plain, weighted = fit(weight, 2), fit(weight, 2, importance)

    def error(scales):
        return (sign_sums(*scales) - weight).abs().amin(0).square()

    assert error(weighted)[:, 3].sum() < error(plain)[:, 3].sum()
    assert (error(weighted) * importance).sum() < (error(plain) * importance).sum()


def test_no_activations():
    with pytest.raises(SpecError, match="AnyOrder: cannot quantize a 'act'"):
        AnyOrder(2, Site.of_act(4))


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4], ids=["zero", "one", "large"])
def test_constant_weights_are_finite(value):
    made = quantizer((4, 5), 3)
    x = torch.full((4, 5), value)
    made.init_from(x)
    torch.testing.assert_close(made(x).detach(), x, atol=1e-6, rtol=1e-5)
