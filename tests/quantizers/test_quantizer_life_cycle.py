"""Every registered quantizer keeps the contract of quantizers/base.py: calibration, state, bit-widths, health."""

from __future__ import annotations

import copy

import pytest
import torch
from quantizer_cases import disturb, every, make, sample

from qmambair_basicsr.quantizers import (
    QUANTIZER_REGISTRY,
    QuantizerSpec,
    Site,
    SpecError,
    UncalibratedError,
    build_quantizer,
)
from qmambair_basicsr.quantizers.site import ROLES


@every
def test_state_and_copies_reproduce_the_output(kind, bits, role, options):
    quantizer = make(kind, bits, role, options)
    shapes = {k: v.shape for k, v in quantizer.state_dict().items()}
    x = sample()
    quantizer.init_from(x.abs())
    disturb(quantizer)
    assert shapes == {k: v.shape for k, v in quantizer.state_dict().items()}
    y = quantizer.eval()(x)

    loaded = make(kind, bits, role, options).eval()
    loaded.load_state_dict(quantizer.state_dict(), strict=True)
    assert torch.equal(loaded(x), y)
    assert torch.equal(copy.deepcopy(quantizer)(x), y)

    average = make(kind, bits, role, options).eval()
    with torch.no_grad():
        for pair in (zip(average.parameters(), quantizer.parameters(), strict=True),
                     zip(average.buffers(), quantizer.buffers(), strict=True)):  # fmt: skip
            for target, source in pair:
                target.copy_(source)
    assert torch.equal(average(x), y)


@every
def test_calibration_life_cycle(kind, bits, role, options):
    quantizer = make(kind, bits, role, options).eval()
    x = sample()
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

    single = make(kind, bits, role, options)
    single.init_from(2 * x)
    for key, value in quantizer.named_parameters():
        if quantizer.first_batch_only:
            assert torch.equal(value, state[key])
        elif key in quantizer.extremes:
            assert torch.equal(value, quantizer.extremes[key](state[key], single.state_dict()[key]))
        else:  # the mean of what each batch alone gives
            torch.testing.assert_close(value, (state[key] + single.state_dict()[key]) / 2)

    trained = make(kind, bits, role, options).train()
    collected = quantizer.extremes and role == "act"  # quantized once its range is known
    assert torch.equal(x if collected else trained(x), first)


@every
def test_init_in_place_and_repeatable(kind, bits, role, options):
    quantizer = make(kind, bits, role, options)
    before = [p.data_ptr() for p in quantizer.parameters()]
    quantizer.init_from(sample() * 5)
    quantizer.init_from(sample())
    fresh = make(kind, bits, role, options)
    fresh.init_from(sample())
    assert [p.data_ptr() for p in quantizer.parameters()] == before
    for (name, a), b in zip(quantizer.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@every
def test_health(kind, bits, role, options):
    quantizer = make(kind, bits, role, options)
    x = sample()
    quantizer.init_from(x)
    report = quantizer.health(x)
    assert {"scale", "offset", "clipped", "dead_levels"} <= set(report)
    assert all(isinstance(value, float) for value in report.values())
    assert 0 <= report["clipped"] <= 1
    assert 0 <= report["dead_levels"] <= 2**bits - 1
    assert set(quantizer.health()) <= set(report)


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
    quantizer = build_quantizer(QuantizerSpec(kind, 32), Site.of_role(role))
    x = sample()
    assert quantizer.eval()(x) is x
    assert not quantizer.state_dict()
    assert quantizer.is_initialized()
    with pytest.raises(TypeError, match="no integer codes"):
        quantizer.to_int(x)
