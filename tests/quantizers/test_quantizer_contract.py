"""Every registered quantizer keeps the contract of quantizers/base.py: integers, gradients, awkward tensors."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_cases import CASES, CHANNELS, SHAPE, disturb, every, make, needs_channels, sample, short

from qmambair_basicsr.quantizers import DLS, QUANTIZER_REGISTRY, AffineCodes, QuantizerSpec, Site, build_quantizer, ste


@every
def test_forward_is_dequantized_integers_exactly(kind, bits, role, options):
    quantizer = make(kind, bits, role, options)
    x = sample()
    quantizer.init_from(x)
    disturb(quantizer)
    y = quantizer.eval()(x)
    codes, scale, zero = quantizer.to_int(x)
    assert codes.dtype == torch.int32
    assert codes.min() >= quantizer.qmin
    assert codes.max() <= quantizer.qmax
    assert quantizer.qmax - quantizer.qmin < 2**bits
    assert (scale > 0).all()
    assert torch.equal(quantizer.dequantize(codes, scale, zero, quantizer.output_bounds(x)), y)
    if quantizer.affine:
        assert quantizer.output_bounds(x) is None
        assert torch.equal((codes - zero) * scale, y)


@every
def test_evaluation_takes_the_same_values(kind, bits, role, options):
    """Without gradients another path may run (LSQ's kernel for the soft-rounded ones)."""
    quantizer = make(kind, bits, role, options)
    x = sample()
    quantizer.init_from(x)
    disturb(quantizer)
    with torch.no_grad():
        y = quantizer(x)
    assert torch.equal(quantizer(x), y)


def test_values_for_every_instruction_set(instruction_set):
    """The two tests above once more; one test for all cases, as each takes milliseconds."""
    for case in CASES:
        with suppress(pytest.skip.Exception):
            test_forward_is_dequantized_integers_exactly(*case)
            test_evaluation_takes_the_same_values(*case)


@every
def test_gradients_are_those_of_the_declared_curve(kind, bits, role, options):
    quantizer = make(kind, bits, role, options, torch.float64)
    if not quantizer.affine:
        pytest.skip("the clamp after the grid has a gradient of its own: checked against the golden vectors")
    x = sample(torch.float64).requires_grad_()
    quantizer.init_from(x.detach())
    disturb(quantizer)
    grad = sample(torch.float64, seed=3)
    parameters = [p for p in quantizer.parameters() if p.requires_grad]

    y = quantizer(x)
    got = torch.autograd.grad(y, [x, *parameters], grad, allow_unused=True)
    curve, scale, zero = quantizer.curve(x)
    error = (quantizer.to_int(x)[0] - curve).detach()
    plain = (curve + error - zero) * scale
    torch.testing.assert_close(plain, y, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(plain, [x, *parameters], grad, allow_unused=True)
    for label, a, b in zip(["x", *(n for n, _ in quantizer.named_parameters())], got, expected, strict=False):
        assert (a is None) == (b is None), label
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, label=label: f"{label}: {m}")


@every
def test_declared_curve_is_differentiated_correctly(kind, bits, role, options, monkeypatch):
    """Numerical gradients of the curve; rounding error and declared constants held, gradient scale set to 1."""
    quantizer = make(kind, bits, role, options, torch.float64)
    if not quantizer.affine:
        pytest.skip("the clamp after the grid has a gradient of its own: checked against the golden vectors")
    quantizer.init_from(sample(torch.float64))
    disturb(quantizer)
    modules = {sys.modules[cls.__module__] for cls in type(quantizer).__mro__ if cls.__module__.startswith("qmam")}
    for module in {ste, *modules}:  # learned_step looks scale_grad up in its own
        if hasattr(module, "scale_grad"):
            monkeypatch.setattr(module, "scale_grad", lambda value, factor: value)
    x = sample(torch.float64, seed=11)
    constants = []  # moved a little: the largest magnitude is a border of its own grid
    monkeypatch.setattr(quantizer, "_constant", lambda value: constants.append(1.01 * value.detach()) or constants[0])
    with torch.no_grad():
        error = quantizer.to_int(x)[0] - quantizer.curve(x)[0]
    names = [n for n, p in quantizer.named_parameters() if p.requires_grad]
    values = [p.detach().clone().requires_grad_() for p in quantizer.parameters() if p.requires_grad]

    def plain(x, *values):
        state = {f"q.{name}": value for name, value in zip(names, values, strict=True)}
        curve, scale, zero = torch.func.functional_call(_Curve(quantizer), state, (x,))
        return (curve + error - zero) * scale

    tolerance = {"eps": 1e-7, "atol": 1e-6, "rtol": 1e-4, "fast_mode": bits == 8}
    if values:
        assert torch.autograd.gradcheck(plain, (x, *values), **tolerance)
    if isinstance(quantizer, DLS):  # the cap on the step follows x but is a constant for the gradient: take it away
        quantizer.cap_share = 1e9
    assert torch.autograd.gradcheck(plain, (x.requires_grad_(), *values), **tolerance)


class _Curve(torch.nn.Module):
    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self, x):
        return self.q.curve(x)


@every
def test_survives_awkward_tensors(kind, bits, role, options):
    outlier = sample()
    outlier[0, 0, 0] = 1e30
    cases = {
        "all zero": torch.zeros(SHAPE),
        "constant": torch.full(SHAPE, -7.3),
        "one element": torch.full((1, 1, 1), 0.3),
        "huge outlier": outlier,
        "non-negative": sample().abs(),
        "tiny": sample() * 1e-7,
    }
    for label, x in cases.items():
        if label == "one element" and needs_channels(options):
            continue
        quantizer = make(kind, bits, role, options)
        x.requires_grad_()
        quantizer.init_from(x.detach())
        y = quantizer(x)
        y.sum().backward()
        tensors = {"output": y, "gradient to x": x.grad}
        tensors |= {f"gradient to {n}": p.grad for n, p in quantizer.named_parameters() if p.grad is not None}
        for what, tensor in tensors.items():
            assert torch.isfinite(tensor).all(), f"{label}: {what}"
        codes, scale, zero = quantizer.to_int(x.detach())
        assert torch.equal(quantizer.dequantize(codes, scale, zero, quantizer.output_bounds(x.detach())), y)


@every
def test_nan_stays_nan(kind, bits, role, options):
    quantizer = make(kind, bits, role, options)
    quantizer.init_from(sample())
    x = sample()
    x[1, 2, 3] = float("nan")
    assert quantizer.eval()(x)[1, 2, 3].isnan()
    with pytest.raises(ValueError, match=r"body\.0\.x.*NaN"):
        make(kind, bits, role, options).init_from(x)


@every
def test_monotone_and_at_most_2_to_the_n_levels(kind, bits, role, options):
    quantizer = make(kind, bits, role, options)
    x = torch.linspace(-3, 3, 2000).view(1, -1, 1).expand(1, 2000, CHANNELS).contiguous()
    quantizer.init_from(x)
    disturb(quantizer)
    y = quantizer.eval()(x)[0]
    assert (y.diff(dim=0) >= 0).all()
    levels = [column.unique().numel() for column in y.unbind(1)]
    assert max(levels) <= 2**bits + (0 if quantizer.affine else 2)
    assert min(levels) >= 2


@every
def test_sample_does_not_depend_on_its_neighbours(kind, bits, role, options):
    quantizer = make(kind, bits, role, options)
    if role != "act" or getattr(quantizer, "stats", "sample") == "tensor":
        pytest.skip("statistics over the whole tensor, as documented")
    x = sample()
    quantizer.init_from(x)
    quantizer.eval()
    assert torch.equal(quantizer(x)[:1], quantizer(torch.cat((x[:1], 100 * x[1:])))[:1])


@pytest.mark.parametrize("power", [-6, 7])
@every
def test_output_scales_with_the_input(kind, bits, role, options, power):
    if QUANTIZER_REGISTRY[kind].fixed_range:
        pytest.skip("documented: the range does not follow the data")
    if options.get("mode") == "official":
        pytest.skip("the release's absolute floor")
    factor, x = 2.0**power, sample()
    small, large = make(kind, bits, role, options), make(kind, bits, role, options)
    small.init_from(x)
    large.init_from(factor * x)
    torch.testing.assert_close(large(factor * x), factor * small(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every
def test_half_precision_is_computed_in_float32(kind, bits, role, options, dtype):
    quantizer = make(kind, bits, role, options)
    x = sample(dtype)
    quantizer.init_from(x)
    y = quantizer.eval()(x)
    assert y.dtype == dtype
    assert torch.equal(y, quantizer(x.float()).to(dtype))
    codes, scale, zero = quantizer.to_int(x)
    assert torch.equal(quantizer.dequantize(codes, scale, zero, quantizer.output_bounds(x)).to(dtype), y)


@every
def test_not_contiguous(kind, bits, role, options):
    quantizer = make(kind, bits, role, options)
    x = sample()
    quantizer.init_from(x)
    view = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not view.is_contiguous()
    torch.testing.assert_close(quantizer(view), quantizer(x))


@every
def test_channels_last_maps(kind, bits, role, options):
    quantizer = make(kind, bits, role, {k: v for k, v in options.items() if k != "granularity"}, channels=None)
    x = torch.randn(2, 60, 17, 19).to(memory_format=torch.channels_last)
    quantizer.init_from(x)
    y = quantizer.eval()(x)
    assert y.shape == x.shape
    codes, scale, zero = quantizer.to_int(x)
    assert torch.equal(quantizer.dequantize(codes, scale, zero, quantizer.output_bounds(x)), y)


STATIC = [case for case in CASES if not case[3]]


@pytest.mark.parametrize(("kind", "bits", "role", "options"), STATIC, ids=short)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_quantizing_twice_changes_nothing(kind, bits, role, options, data):
    quantizer = make(kind, bits, role, options)
    if quantizer.dynamic:
        pytest.skip("the grid follows the tensor, and a quantized tensor is another one")
    spread = data.draw(st.floats(1e-3, 1e3), label="spread")
    shift = data.draw(st.floats(-2, 2), label="shift")
    x = (sample(seed=data.draw(st.integers(0, 1000), label="seed")) + shift) * spread
    quantizer.init_from(x)
    once = quantizer.eval()(x)
    assert torch.equal(quantizer(once), once)


@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", [k for k in QUANTIZER_REGISTRY if k != "Identity"])
def test_any_values_give_finite_values_on_the_grid(kind, values, data):
    cls = QUANTIZER_REGISTRY[kind]
    bits = data.draw(st.sampled_from([b for b in cls.bit_widths if b < 32]), label="bits")
    x = torch.tensor(values).view(1, -1)
    for role in cls.roles:
        quantizer = build_quantizer(QuantizerSpec(kind, bits), Site.of_role(role, x.shape[1], 1))
        quantizer.init_from(x)
        y = quantizer.eval()(x)
        assert torch.isfinite(y).all()
        encoded = quantizer.encode(x)
        assert torch.equal(encoded.values(), y)
        assert encoded.codes.max() - encoded.codes.min() < 2**bits
        if cls.kind is AffineCodes:
            codes, scale, zero = quantizer.to_int(x)
            assert torch.equal((codes - zero) * scale, y)
        else:  # values are worked out from the codes, so ask the whole grid: none of it lies nearer
            every_code = range(-(2 ** (bits - 1)), 2 ** (bits - 1))
            codes = (torch.full_like(encoded.codes, code) for code in every_code)
            grid = torch.stack([replace(encoded, codes=code).values() for code in codes])
            rounding = 1e-6 * (x.abs() + grid.abs().amax(0))
            assert ((y - x).abs() <= (grid - x).abs().amin(0) + rounding).all()
