"""Every registered quantizer, with every choice of every option, keeps the contract of quantizers/base.py.

A new entry of QUANTIZER_REGISTRY is covered without a new test.
"""

from __future__ import annotations

import copy
import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmambair_basicsr.quantizers import (
    DLS,
    QUANTIZER_REGISTRY,
    QuantizerSpec,
    SpecError,
    UncalibratedError,
    build_quantizer,
)
from qmambair_basicsr.quantizers.base import ROLES

CHANNELS = 5
SHAPE = (3, 7, CHANNELS)


def _variants(name: str) -> list[dict]:
    """Every choice of every option of a quantizer with the others left at their defaults, in each mode."""
    single = [{}]
    for key, option in QUANTIZER_REGISTRY[name].options.items():
        if option.keys:
            inner = [[(k, choice) for choice in entry.choices] for k, entry in option.keys.items()]
            single += [{key: dict(pairs)} for pairs in itertools.product(*inner)]
        elif key != "mode":
            single += [{key: choice} for choice in option.choices if choice != option.default]
    if "mode" in QUANTIZER_REGISTRY[name].options:
        single += [{"mode": "official"}] + [{"mode": "official", **v} for v in single[1:] if "init" not in v]
    return single


def _cases():
    """(type, bits, role, options): all option combinations at 4 bits, the defaults at 2, 3 and 8."""
    for name, cls in QUANTIZER_REGISTRY.items():
        if name == "Identity":
            continue
        for role in cls.roles:
            for options in _variants(name):
                yield name, 4, role, options
            for bits in (1, 2, 3, 8) if role != "param" else ():
                if bits in cls.bit_widths:
                    yield name, bits, role, {}


def _label(value):
    if isinstance(value, dict):
        return "-".join(str(v) if not isinstance(v, dict) else "".join(v.values()) for v in value.values()) or "default"
    return str(value)


CASES = list(_cases())
every = pytest.mark.parametrize(("kind", "bits", "role", "options"), CASES, ids=_label)


def _make(kind, bits, role, options, dtype=torch.float32, channels=CHANNELS):
    spec = QuantizerSpec(kind, bits, options)
    try:
        quantizer = build_quantizer(
            spec, role=role, channels=channels, channel_dim=-1 if role != "weight" else 2, name="body.0.x"
        )
    except SpecError as error:
        pytest.skip(f"refused as documented: {error}")
    return quantizer.to(dtype)


def _data(dtype=torch.float32, seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _disturb(quantizer, amount=0.05):
    """Move every parameter off its initial value, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
            parameter.add_(noise * amount * (parameter.abs() + 0.1 * parameter.abs().max() + 0.01))


@every
def test_forward_is_dequantized_integers_exactly(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options)
    x = _data()
    quantizer.init_from(x)
    _disturb(quantizer)
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
def test_gradients_are_those_of_the_declared_curve(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options, torch.float64)
    if not quantizer.affine:
        pytest.skip("the clamp after the grid has a gradient of its own: checked against the golden vectors")
    x = _data(torch.float64).requires_grad_()
    quantizer.init_from(x.detach())
    _disturb(quantizer)
    grad = _data(torch.float64, seed=3)
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
    quantizer = _make(kind, bits, role, options, torch.float64)
    if not quantizer.affine:
        pytest.skip("the clamp after the grid has a gradient of its own: checked against the golden vectors")
    quantizer.init_from(_data(torch.float64))
    _disturb(quantizer)
    for module in {sys.modules[cls.__module__] for cls in type(quantizer).__mro__ if cls.__module__.startswith("qmam")}:
        if hasattr(module, "scale_grad"):
            monkeypatch.setattr(module, "scale_grad", lambda value, factor: value)
    x = _data(torch.float64, seed=11)
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
    outlier = _data()
    outlier[0, 0, 0] = 1e30
    cases = {
        "all zero": torch.zeros(SHAPE),
        "constant": torch.full(SHAPE, -7.3),
        "one element": torch.full((1, 1, 1), 0.3),
        "huge outlier": outlier,
        "non-negative": _data().abs(),
        "tiny": _data() * 1e-7,
    }
    for label, x in cases.items():
        if label == "one element" and "channel" in options.values():
            continue
        quantizer = _make(kind, bits, role, options)
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
    quantizer = _make(kind, bits, role, options)
    quantizer.init_from(_data())
    x = _data()
    x[1, 2, 3] = float("nan")
    assert quantizer.eval()(x)[1, 2, 3].isnan()
    with pytest.raises(ValueError, match=r"body\.0\.x.*NaN"):
        _make(kind, bits, role, options).init_from(x)


@every
def test_monotone_and_at_most_2_to_the_n_levels(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options)
    x = torch.linspace(-3, 3, 2000).view(1, -1, 1).expand(1, 2000, CHANNELS).contiguous()
    quantizer.init_from(x)
    _disturb(quantizer)
    y = quantizer.eval()(x)[0]
    assert (y.diff(dim=0) >= 0).all()
    levels = [column.unique().numel() for column in y.unbind(1)]
    assert max(levels) <= 2**bits + (0 if quantizer.affine else 2)
    assert min(levels) >= 2


@every
def test_state_and_copies_reproduce_the_output(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options)
    shapes = {k: v.shape for k, v in quantizer.state_dict().items()}
    x = _data()
    quantizer.init_from(x.abs())
    _disturb(quantizer)
    assert shapes == {k: v.shape for k, v in quantizer.state_dict().items()}
    y = quantizer.eval()(x)

    loaded = _make(kind, bits, role, options).eval()
    loaded.load_state_dict(quantizer.state_dict(), strict=True)
    assert torch.equal(loaded(x), y)
    assert torch.equal(copy.deepcopy(quantizer)(x), y)

    average = _make(kind, bits, role, options).eval()
    with torch.no_grad():
        for pair in (zip(average.parameters(), quantizer.parameters(), strict=True),
                     zip(average.buffers(), quantizer.buffers(), strict=True)):  # fmt: skip
            for target, source in pair:
                target.copy_(source)
    assert torch.equal(average(x), y)


@every
def test_calibration_life_cycle(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options).eval()
    x = _data()
    with pytest.raises(UncalibratedError, match=r"body\.0\.x"):
        quantizer(x)
    with pytest.raises(UncalibratedError):
        quantizer.to_int(x)
    quantizer.calibrating = True
    first = quantizer(x)
    state = copy.deepcopy(quantizer.state_dict())
    quantizer(2 * x)
    quantizer.calibrating = False
    assert quantizer.is_initialized()

    single = _make(kind, bits, role, options)
    single.init_from(2 * x)
    for key, value in quantizer.named_parameters():
        if quantizer.first_batch_only:
            assert torch.equal(value, state[key])
        else:  # the mean of what each batch alone gives
            torch.testing.assert_close(value, (state[key] + single.state_dict()[key]) / 2)

    trained = _make(kind, bits, role, options).train()
    assert torch.equal(trained(x), first)


@every
def test_init_in_place_and_repeatable(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options)
    before = [p.data_ptr() for p in quantizer.parameters()]
    quantizer.init_from(_data() * 5)
    quantizer.init_from(_data())
    fresh = _make(kind, bits, role, options)
    fresh.init_from(_data())
    assert [p.data_ptr() for p in quantizer.parameters()] == before
    for (name, a), b in zip(quantizer.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@every
def test_sample_does_not_depend_on_its_neighbours(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options)
    if role != "act" or getattr(quantizer, "stats", "sample") == "tensor":
        pytest.skip("statistics over the whole tensor, as documented")
    x = _data()
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
    factor, x = 2.0**power, _data()
    small, large = _make(kind, bits, role, options), _make(kind, bits, role, options)
    small.init_from(x)
    large.init_from(factor * x)
    torch.testing.assert_close(large(factor * x), factor * small(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every
def test_half_precision_is_computed_in_float32(kind, bits, role, options, dtype):
    quantizer = _make(kind, bits, role, options)
    x = _data(dtype)
    quantizer.init_from(x)
    y = quantizer.eval()(x)
    assert y.dtype == dtype
    assert torch.equal(y, quantizer(x.float()).to(dtype))
    codes, scale, zero = quantizer.to_int(x)
    assert torch.equal(quantizer.dequantize(codes, scale, zero, quantizer.output_bounds(x)).to(dtype), y)


@every
def test_not_contiguous(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options)
    x = _data()
    quantizer.init_from(x)
    view = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not view.is_contiguous()
    torch.testing.assert_close(quantizer(view), quantizer(x))


@every
def test_channels_last_maps(kind, bits, role, options):
    quantizer = _make(kind, bits, role, {k: v for k, v in options.items() if k != "granularity"}, channels=None)
    x = torch.randn(2, 60, 17, 19).to(memory_format=torch.channels_last)
    quantizer.init_from(x)
    y = quantizer.eval()(x)
    assert y.shape == x.shape
    codes, scale, zero = quantizer.to_int(x)
    assert torch.equal(quantizer.dequantize(codes, scale, zero, quantizer.output_bounds(x)), y)


@every
def test_health(kind, bits, role, options):
    quantizer = _make(kind, bits, role, options)
    x = _data()
    quantizer.init_from(x)
    report = quantizer.health(x)
    assert {"scale", "offset", "clipped", "dead_levels"} <= set(report)
    assert all(isinstance(value, float) for value in report.values())
    assert 0 <= report["clipped"] <= 1
    assert 0 <= report["dead_levels"] <= 2**bits - 1
    assert set(quantizer.health()) <= set(report)


STATIC = [case for case in CASES if not case[3]]


@pytest.mark.parametrize(("kind", "bits", "role", "options"), STATIC, ids=_label)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_quantizing_twice_changes_nothing(kind, bits, role, options, data):
    quantizer = _make(kind, bits, role, options)
    if quantizer.dynamic:
        pytest.skip("the grid follows the tensor, and a quantized tensor is another one")
    spread = data.draw(st.floats(1e-3, 1e3), label="spread")
    shift = data.draw(st.floats(-2, 2), label="shift")
    x = (_data(seed=data.draw(st.integers(0, 1000), label="seed")) + shift) * spread
    quantizer.init_from(x)
    once = quantizer.eval()(x)
    assert torch.equal(quantizer(once), once)


@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), bits=st.integers(2, 8))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", [k for k in QUANTIZER_REGISTRY if k != "Identity"])
def test_any_values_give_finite_values_on_the_grid(kind, values, bits):
    cls = QUANTIZER_REGISTRY[kind]
    x = torch.tensor(values).view(1, -1)
    for role in cls.roles:
        quantizer = build_quantizer(QuantizerSpec(kind, bits), role=role, channels=x.shape[1], channel_dim=1)
        quantizer.init_from(x)
        y = quantizer.eval()(x)
        codes, scale, zero = quantizer.to_int(x)
        assert torch.isfinite(y).all()
        assert torch.equal((codes - zero) * scale, y)


@pytest.mark.parametrize("bits", [0, -1, 9, 16, "4", True, 4.0, None])
@pytest.mark.parametrize("kind", QUANTIZER_REGISTRY)
def test_impossible_bits_are_refused_by_name(kind, bits):
    with pytest.raises(SpecError, match=r"bits must be one of .*got " + str(repr(bits)).replace(".", r"\.")):
        QuantizerSpec.from_dict({"type": kind, "bits": bits})
    with pytest.raises(SpecError, match="bits"):
        QUANTIZER_REGISTRY[kind](bits)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", QUANTIZER_REGISTRY)
def test_32_bits_leave_the_tensor_alone(kind, role):
    quantizer = build_quantizer(QuantizerSpec(kind, 32), role=role)
    x = _data()
    assert quantizer.eval()(x) is x
    assert not quantizer.state_dict()
    assert quantizer.is_initialized()
    with pytest.raises(TypeError, match="no integer codes"):
        quantizer.to_int(x)
