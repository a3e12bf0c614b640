"""What stable mode mends, each shown beside the release's behaviour."""

from __future__ import annotations

import copy

import pytest
import torch

from qmambair_basicsr.quantizers import DLS, RFA, LSQOffset, Site
from qmambair_basicsr.quantizers.dls import initial_weights
from qmambair_basicsr.quantizers.rfa import _Ordered


def _both(cls, bits, x, **options):
    quantizers = [cls(bits, mode=mode, **options) for mode in ("official", "stable")]
    for quantizer in quantizers:
        quantizer.init_from(x)
    return quantizers


def test_dls_keeps_values_below_the_mean_of_non_negative_data():
    x = torch.rand(1, 2000)
    official, stable = _both(DLS, 4, x)
    below = x < x.mean()
    assert official(x)[below].unique().numel() == 1
    assert stable(x)[below].unique().numel() >= 7
    assert (stable(x) - x).square().mean() < (official(x) - x).square().mean() / 10


def test_dls_step_weights_get_gradients_at_two_bits():
    x = torch.randn(1, 4000)
    gradients = []
    for quantizer in (*_both(DLS, 2, x), *_both(DLS, 2, x, init={"search": "none"})[1:]):
        quantizer(x).square().sum().backward()
        gradients.append(quantizer.w.grad)
    assert not gradients[0].any()
    assert (gradients[1][1:] != 0).all()
    assert (gradients[2][1:] != 0).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_dls_never_changes_the_sign_of_one_signed_data(bits):
    rates = -torch.exp(torch.randn(1, 500))  # like A = -exp(A_logs)
    for x in (rates, -rates):
        quantizer = DLS(bits, stats="tensor")
        quantizer.init_from(x)
        for shift in (-1.0, -0.5, 0.0):
            with torch.no_grad():
                quantizer.v[0] = shift
            assert (quantizer(x) * x.sign() >= 0).all()


@pytest.mark.parametrize(
    "thresholds", [[-2.0, 0.5, 0.5, 1.0], [-2.0, 0.6, -0.1, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0, -1, -2]]
)
def test_rfa_unsorted_thresholds_stay_finite_and_monotone(thresholds):
    w = torch.linspace(-0.2, 0.2, 401, requires_grad=True)
    quantizer = RFA(2)
    quantizer.init_from(w.detach())
    with torch.no_grad():
        quantizer.thresholds.copy_(torch.tensor(thresholds))
    y = quantizer(w)
    y.sum().backward()
    assert (y.diff() >= 0).all()
    assert quantizer.ordered_thresholds().diff().min() >= quantizer.min_gap - 1e-6
    assert w.grad.abs().max() <= 1 / quantizer.min_gap * 1.001
    for parameter in quantizer.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_rfa_official_duplicates_give_unusable_gradients():
    w = torch.linspace(-0.2, 0.2, 401, requires_grad=True)
    quantizer = RFA(2, mode="official")
    quantizer.init_from(w.detach())
    with torch.no_grad():
        quantizer.thresholds.copy_(torch.tensor([-2.0, 0.5, 0.5, 1.0]))
    quantizer(w).sum().backward()
    assert not torch.isfinite(quantizer.thresholds.grad).all()


def test_rfa_ordered_thresholds_are_returned_unchanged():
    quantizer = RFA(4)
    with torch.no_grad():
        quantizer.thresholds.add_(torch.rand(16) * 0.8)
    assert torch.equal(quantizer.ordered_thresholds(), quantizer.thresholds)
    assert torch.equal(_Ordered.apply(quantizer.thresholds, quantizer.min_gap), quantizer.thresholds)  # as on a GPU


def test_rfa_scale_at_zero_recovers():
    w = torch.randn(300) * 0.05
    for cls, site in ((RFA, Site.of_weight()), (LSQOffset, Site.of_act())):
        quantizer = cls(4, site)
        quantizer.init_from(w)
        with torch.no_grad():
            quantizer.scale.zero_()
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-3)
        for _ in range(30):
            optimizer.zero_grad()
            loss = (quantizer(w) - w).square().sum()
            loss.backward()
            optimizer.step()
        assert quantizer.scale.abs() > 1e-3
        assert loss < 0.5 * w.square().sum()


def test_lsq_offset_sign_is_taken_from_all_batches():
    quantizer = LSQOffset(4).eval()
    quantizer.calibrating = True
    for x in (torch.rand(2, 30), torch.randn(2, 30), torch.rand(2, 30)):
        quantizer(x)
    assert bool(quantizer.signed)
    first = LSQOffset(4, mode="official").eval()
    first.calibrating = True
    for x in (torch.rand(2, 30), torch.randn(2, 30)):
        first(x)
    assert not bool(first.signed)


@pytest.mark.parametrize("search", ["mse", "none"])
def test_never_negative_activations_use_the_levels(search):
    x = torch.rand(4, 500)
    quantizer = LSQOffset(3, search=search)
    quantizer.init_from(x)
    assert not bool(quantizer.signed)
    y = quantizer(x)
    if search == "none":
        assert y.min() == 0
        assert quantizer.to_int(x)[2] == quantizer.qmin
    else:
        assert y.unique().numel() == 8


def _start_errors(cls, bits, x, **options):
    errors = {}
    for search in ("mse", "none"):
        settings = {"init": {"search": search}} if cls is DLS else {"search": search}
        quantizer = cls(bits, **settings, **options)
        quantizer.init_from(x)
        errors[search] = (quantizer(x) - x).square().mean().item()
    return errors


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["bell", "skewed", "channels"])
@pytest.mark.parametrize("cls", [DLS, RFA, LSQOffset])
def test_fitted_start_has_less_error(cls, kind, bits):
    x = torch.randn(1, 32, 32, 48)
    if kind == "skewed":
        x = torch.nn.functional.silu(2 * x)
    elif kind == "channels":  # a search that strides over channels-last data would see few of them
        x = x * torch.logspace(-1, 1, 48)
    errors = _start_errors(cls, bits, x)
    assert errors["mse"] < (1.001 if cls is RFA else 0.95) * errors["none"]


@pytest.mark.parametrize("bits", [2, 4])
def test_initialisation_groups(bits):
    """Ranges of Table 6, on data with known statistics and the cap out of the way."""
    x = torch.randn(1, 5000, dtype=torch.float64)
    mean, std, low, high = x.mean(), x.std(), x.min(), x.max()
    largest, intervals = 2 ** (bits - 1) - 1, 2**bits - 1
    middle, wide = (low + high) / 2, (high - low) / intervals
    expected = {
        ("G1", "text"): (3 * std / largest, mean),
        ("G2", "text"): (4 * std / largest, mean),
        ("G3", "text"): (wide, middle),
        ("G4", "text"): (wide, mean),
        ("G1", "grid"): (3 * std / largest, mean),
        ("G2", "grid"): (3 * std / largest, middle),
        ("G3", "grid"): (wide, mean),
        ("G4", "grid"): (wide, middle),
    }
    for (group, convention), (step, centre) in expected.items():
        quantizer = DLS(bits, init={"group": group, "convention": convention, "search": "none"}).double()
        with torch.no_grad():
            w, v, _ = initial_weights(bits, group, convention)
            quantizer.w.copy_(torch.tensor(w))
            quantizer.v.copy_(torch.tensor(v))
        quantizer.init_from(x)
        quantizer.cap_share = 1e6
        _, scale, zero = quantizer.to_int(x)
        shifted = abs(mean - centre) * w[0]  # w1 weighs |mean of the shifted tensor|
        torch.testing.assert_close(scale, step + shifted, rtol=1e-6, atol=0, msg=f"{group} {convention} step")
        torch.testing.assert_close(-zero * scale, centre, rtol=1e-6, atol=1e-9, msg=f"{group} {convention} centre")


def test_copies_scale_the_gradient_as_the_release_does():
    """One tensor counted four times = the release's four stacked copies, each giving a quarter of the gradient."""
    x = torch.randn(1, 64, dtype=torch.float64)
    single = LSQOffset(4, Site(copies=4)).double()
    single.init_from(x)
    stacked = copy.deepcopy(single)
    stacked.site = Site(copies=1)
    single(x).backward(torch.ones_like(x) * 4)
    stacked(x.repeat(4, 1)).backward(torch.ones(4, 64, dtype=torch.float64))
    torch.testing.assert_close(single.scale.grad, stacked.scale.grad)
    torch.testing.assert_close(single.offset.grad, stacked.offset.grad)
