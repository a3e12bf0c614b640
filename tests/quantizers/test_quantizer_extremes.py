"""Finite input gives finite output and gradients, up to the ends of its type, and the contract holds there too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_cases import SHAPE, disturb, every, make, needs_channels, sample

from qmambair_basicsr.ops.limits import as_type

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _spread(dtype):
    """Values of both signs with a largest magnitude of 1."""
    x = sample(torch.float64)
    return x / x.abs().max()


def _ends(dtype) -> tuple[float, float, float]:
    """Largest number, smallest normal one and smallest one above 0 of a type."""
    info = torch.finfo(dtype)
    return info.max, info.smallest_normal, info.smallest_normal * info.eps


TENSORS = {
    "ordinary": lambda dtype: 3 * _spread(dtype),
    "zeros": lambda dtype: torch.zeros(SHAPE),
    "constant": lambda dtype: torch.full(SHAPE, -7.3),
    "nearly constant": lambda dtype: 1 + _spread(dtype) * 2 * torch.finfo(dtype).eps,
    "largest": lambda dtype: _spread(dtype) * _ends(dtype)[0],
    "largest, one sign": lambda dtype: -_spread(dtype).abs() * _ends(dtype)[0],
    "largest everywhere": lambda dtype: torch.full(SHAPE, _ends(dtype)[0], dtype=torch.float64),
    "largest, either sign": lambda dtype: _spread(dtype).sign() * _ends(dtype)[0],
    "one outlier": lambda dtype: torch.where(_spread(dtype) == 1, _ends(dtype)[0], _spread(dtype)),
    "denormal": lambda dtype: _spread(dtype) * _ends(dtype)[1] / 2,
    "denormal, one sign": lambda dtype: _spread(dtype).abs() * _ends(dtype)[1] / 2,
    "few denormal": lambda dtype: torch.where(_spread(dtype) > 0.3, -_ends(dtype)[2], 0.0),
    "square overflows": lambda dtype: _spread(dtype) * _ends(dtype)[0] ** 0.6,
    "square is zero": lambda dtype: _spread(dtype) * _ends(dtype)[1] ** 0.6,
    "one element": lambda dtype: torch.full((1, 1, 1), 0.3),
    "largest element alone": lambda dtype: torch.full((1, 1, 1), -_ends(dtype)[0], dtype=torch.float64),
    "denormal element alone": lambda dtype: torch.full((1, 1, 1), _ends(dtype)[2], dtype=torch.float64),
}


@every
@settings(max_examples=10, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    seen=st.sampled_from(sorted(TENSORS)),
    given_=st.sampled_from(sorted(TENSORS)),
    own=st.booleans(),
    trained=st.booleans(),
    seed=st.integers(0, 99),
)
def test_finite_and_on_the_grid(kind, bits, role, options, dtype, seen, given_, own, trained, seed):
    """Calibrated on one tensor (``own``: the other one), then moved as by training, then given the other."""
    quantizer = make(kind, bits, role, options)
    if dtype == torch.float64 and seed % 2:  # otherwise float64 data meet float32 parameters
        quantizer = quantizer.double()
    x, calibration = TENSORS[given_](dtype).to(dtype), TENSORS[given_ if own else seen](dtype).to(dtype)
    if needs_channels(options) and 1 in (x.shape[-1], calibration.shape[-1]):
        return
    x.requires_grad_()
    quantizer.init_from(calibration)
    if trained and options.get("mode") != "official":  # whose step may become 0, as in the release
        disturb(quantizer)
    y = quantizer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(dtype))
    tensors = {"output": y, "gradient to x": x.grad}
    tensors |= {f"gradient to {n}": p.grad for n, p in quantizer.named_parameters() if p.grad is not None}
    tensors |= dict(quantizer.state_dict())
    for what, tensor in tensors.items():
        assert torch.isfinite(tensor).all(), what
    codes, scale, zero = quantizer.to_int(x.detach())
    assert codes.min() >= quantizer.qmin and codes.max() <= quantizer.qmax
    assert torch.isfinite(zero).all() and torch.isfinite(scale).all() and (scale > 0).all()
    value = quantizer.dequantize(codes, scale, zero, quantizer.output_bounds(x.detach()))
    half = dtype in (torch.float16, torch.bfloat16)
    assert value.dtype == (torch.float32 if half else dtype)
    assert torch.equal(as_type(value, dtype), y)


@pytest.mark.parametrize("kind", ["MinMax", "DoReFa", "LSQOffset", "DLS", "RFA"])
def test_float64_data_and_float32_parameters(kind):
    """The contract holds to the last bit of float64, not of float32."""
    role = "weight" if kind == "RFA" else "act"
    quantizer = make(kind, 4, role, {})
    x = sample(torch.float64) * 2.3 + 0.4
    quantizer.init_from(x)
    codes, scale, zero = quantizer.to_int(x)
    y = quantizer.eval()(x)
    assert y.dtype == scale.dtype == zero.dtype == torch.float64
    assert torch.equal((codes - zero) * scale, y)
