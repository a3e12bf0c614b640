"""Groups of channels that share a step, and levels at half-integers: grids, gradients, tables, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_cases import disturb

from qmambair_basicsr.layers.convert import FrozenCodes
from qmambair_basicsr.quantizers import QUANTIZER_REGISTRY, AffineCodes, QuantizerSpec, Site, SpecError, build_quantizer
from qmambair_basicsr.quantizers.groups import SIZES, group_length

GROUPED = [kind for kind, cls in QUANTIZER_REGISTRY.items() if "granularity" in cls.options]
SHAPES = {"conv": (6, 40, 3, 3), "linear": (6, 60), "stack": (2, 5, 48), "thin": (6, 1, 3, 3), "prime": (4, 23)}


def weight_quantizer(kind, shape, bits=2, granularity="group16", **options):
    site = Site.of_weight(*((shape[1], 1) if len(shape) == 3 else (shape[0], 0)), shape=shape, part="w")
    return build_quantizer(QuantizerSpec(kind, bits, {"granularity": granularity, **options}), site)


def spread_weight(shape, dtype=torch.float32):
    """Input channels of very different magnitude."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    dim = 2 if len(shape) == 3 else 1
    magnitude = torch.logspace(-1, 1, shape[dim], dtype=torch.float64)
    return (x.movedim(dim, -1) * magnitude).movedim(-1, dim).to(dtype)


@given(channels=st.integers(1, 400), size=st.sampled_from(sorted(SIZES.values())))
def test_groups_have_one_length_that_divides_the_channels(channels, size):
    length = group_length(channels, size)
    assert channels % length == 0
    assert length <= size or not any(channels % n == 0 for n in range(-(-size // 2), size + 1))
    assert 2 * length >= min(size, channels)


def test_lengths_of_the_networks():
    assert [group_length(n, 16) for n in (60, 48, 180, 10, 1, 23, 174)] == [15, 16, 15, 10, 1, 23, 29]
    assert [group_length(n, 32) for n in (60, 48, 180, 120, 64)] == [30, 24, 30, 30, 32]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", GROUPED)
def test_each_group_is_quantized_as_if_it_were_alone(kind, shape):
    x = spread_weight(shape, torch.float64)
    whole = weight_quantizer(kind, shape).double()
    whole.init_from(x)
    disturb(whole, 0 if kind in ("RFA", "N2UQ") else 0.05)  # their thresholds are those of the whole tensor
    codes, scale, zero = whole.to_int(x)
    assert torch.equal((codes - zero) * scale, whole.eval()(x))
    channels = shape[2 if len(shape) == 3 else 1]
    count = x[..., 0, 0].numel() if len(shape) == 4 else x.numel()
    rows = x.reshape(count // group_length(channels, 16), -1)
    got = whole(x).reshape(rows.shape)
    assert all(row.unique().numel() <= 4 for row in got)
    alone = weight_quantizer(kind, tuple(rows.shape), granularity="channel").double()
    alone.load_state_dict(whole.state_dict())
    torch.testing.assert_close(alone.eval()(rows), got, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", GROUPED)
def test_gradients_are_those_of_the_declared_curve(kind):
    for shape in SHAPES.values():
        quantizer = weight_quantizer(kind, shape, bits=3).double()
        x = spread_weight(shape, torch.float64).requires_grad_()
        quantizer.init_from(x.detach())
        disturb(quantizer)
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        wanted = [p for p in quantizer.parameters() if p.requires_grad]
        got = torch.autograd.grad(quantizer(x), [x, *wanted], grad, allow_unused=True)
        curve, scale, zero = quantizer.curve(x)
        error = (quantizer.to_int(x)[0] - curve).detach()
        expected = torch.autograd.grad((curve + error - zero) * scale, [x, *wanted], grad, allow_unused=True)
        for a, b in zip(got, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", GROUPED)
def test_a_step_for_each_group_fits_better(kind):
    x = spread_weight((8, 48))
    errors = []
    for granularity in ("group16", "channel"):
        quantizer = weight_quantizer(kind, (8, 48), bits=4, granularity=granularity)
        quantizer.init_from(x)
        errors.append((quantizer.eval()(x) - x).square().mean())
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", GROUPED)
def test_frozen_codes_hold_one_entry_for_each_group(kind, shape):
    x = spread_weight(shape)
    quantizer = weight_quantizer(kind, shape)
    quantizer.init_from(x)
    encoded = quantizer.encode(x)
    assert isinstance(encoded, AffineCodes) and encoded.scale.numel() in (quantizer.cut.total, 1)
    assert torch.equal(encoded.values(), quantizer.eval()(x))
    frozen = FrozenCodes(2, encoded, quantizer.site)
    assert torch.equal(frozen(x), quantizer(x))
    assert frozen.integer_form() == (quantizer.cut.count == 1)


@pytest.mark.parametrize("kind", [k for k in GROUPED if "act" in QUANTIZER_REGISTRY[k].roles])
def test_channels_of_an_input(kind):
    x = spread_weight((7, 40), torch.float64).view(1, 7, 40)
    for dim, tensor in ((-1, x), (1, x.movedim(-1, 1).contiguous())):
        site = Site.of_act(40, dim, part="x")
        quantizer = build_quantizer(QuantizerSpec(kind, 4, {"granularity": "group16"}), site).double()
        quantizer.init_from(tensor)
        disturb(quantizer)
        assert (quantizer.cut.total, quantizer.cut.length) == (4, 10)
        codes, scale, zero = quantizer.to_int(tensor)
        values = quantizer.eval()(tensor)
        assert torch.equal((codes - zero) * scale, values)
        groups = values.movedim(dim, -1).reshape(7, 4, 10).unbind(1)
        assert all(group.unique().numel() <= 16 for group in groups)
        tables = quantizer.encode(tensor)
        assert tables.scale.numel() == 4 and torch.equal(tables.values(), values)


@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("search", ["mse", "none"])
def test_a_step_for_each_group_and_an_offset_for_each_channel(negative, search):
    x = spread_weight((50, 40), torch.float64).view(2, 25, 40) + torch.linspace(-2, 2, 40, dtype=torch.float64)
    x = x if negative else x.abs()
    site, options = Site.of_act(40, -1, part="x"), {"offsets": "channel", "search": search}
    both, steps, offsets = (
        build_quantizer(QuantizerSpec("LSQOffset", 3, options | more), site).double()
        for more in ({"granularity": "group16"}, {"granularity": "group16", "offsets": "shared"}, {})
    )
    for quantizer in (both, steps, offsets):
        quantizer.init_from(x)
    assert both.scale.shape == (4,) and both.offset.shape == (40,)
    if search == "mse":
        errors = [(q.eval()(x) - x).square().mean() for q in (both, steps, offsets)]
        assert errors[0] < 0.95 * min(errors[1:])
    disturb(both)
    codes, scale, zero = both.to_int(x)
    assert torch.equal((codes - zero) * scale, both(x)) and torch.equal(both.encode(x).values(), both(x))
    assert both.encode(x).scale.numel() == 4
    form = both.static_form()
    assert form.step.shape == form.offset.shape == (40,)
    inside = ((x + form.offset) / form.step).clamp(form.lowest, form.highest).round()
    torch.testing.assert_close(inside, codes.double(), rtol=0, atol=0)
    x.requires_grad_()
    grad, wanted = torch.ones_like(x).cumsum(-1), [x, both.scale, both.offset]
    got = torch.autograd.grad(both(x), wanted, grad)
    curve, scale, zero = both.curve(x)
    expected = torch.autograd.grad((curve + (codes - curve).detach() - zero) * scale, wanted, grad)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_sites_without_channels_are_refused():
    for site in (Site.of_weight(5, shape=(5,)), Site.of_param(5), Site.of_act(), Site.of_weight(5)):
        with pytest.raises(SpecError, match=r"group16.*use tensor or channel"):
            build_quantizer(QuantizerSpec("LSQ", 2, {"granularity": "group16"}), site)


@settings(max_examples=40, deadline=None)
@given(step=st.floats(1e-3, 1e3), bits=st.integers(2, 8), seed=st.integers(0, 1000))
def test_levels_of_seq_are_the_papers(step, bits, seed):
    quantizer = build_quantizer(QuantizerSpec("SEQ", bits), Site.of_weight(5)).double()
    x = 3 * step * 2.0 ** (bits - 1) * torch.randn(50, generator=torch.Generator().manual_seed(seed)).double()
    quantizer.init_from(x)
    with torch.no_grad():
        quantizer.alpha.fill_(step * 2 ** (bits - 1))
    alpha, k = quantizer.alpha.item(), 2**bits
    inside = torch.clamp(x / alpha, -1, 1) * k / 2 - 0.5
    wanted = (inside.round().clamp(-k / 2, k / 2 - 1) + 0.5) / k * 2 * alpha
    torch.testing.assert_close(quantizer.eval()(x), wanted, rtol=1e-12, atol=0)
    assert quantizer(x).unique().numel() <= k
    if bits == 2:
        assert set((quantizer(x) / alpha * 4).round(decimals=9).tolist()) <= {-3.0, -1.0, 1.0, 3.0}


def test_gradient_of_seq_ends_at_alpha():
    quantizer = build_quantizer(QuantizerSpec("SEQ", 2), Site.of_weight(4)).double()
    quantizer.init_from(torch.ones(4, dtype=torch.float64))
    with torch.no_grad():
        quantizer.alpha.fill_(1.0)  # the outermost level is 0.75
    x = torch.tensor([0.7, 0.9, 1.1, -3.0], dtype=torch.float64, requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
    inside = (0.75 - 0.7) + (0.75 - 0.9)
    expected = (inside + 0.75 - 0.75) / (4 * quantizer.qmax) ** 0.5
    assert quantizer.alpha.grad.item() == pytest.approx(expected, rel=1e-12)


def test_grouped_quantizers_are_copied_and_saved():
    quantizer = weight_quantizer("SEQ", (6, 60))
    x = spread_weight((6, 60))
    quantizer.init_from(x)
    again = weight_quantizer("SEQ", (6, 60))
    again.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    assert torch.equal(again.eval()(x), quantizer.eval()(x))
