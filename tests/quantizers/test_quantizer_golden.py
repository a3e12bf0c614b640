"""``mode: official`` against vectors computed by the authors' release (tests/data/golden/official_dls_rfa.pt)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qmambair_basicsr.quantizers import DLS, RFA, LSQOffset
from qmambair_basicsr.quantizers.ste import scale_grad, snap

_PATH = Path(__file__).resolve().parents[1] / "data" / "golden" / "official_dls_rfa.pt"
pytestmark = pytest.mark.usefixtures("instruction_set")
CASES = {case["name"]: case for case in torch.load(_PATH, weights_only=True)}
STATISTICS = ("mean", "std", "min", "max")


def _close(got, expected, what):
    """1e-5 of the largest expected magnitude (the vectors are float32, summed in the release's own order)."""
    tolerance = 1e-5 * max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(
        got.reshape(-1), expected.reshape(-1), rtol=0, atol=tolerance, msg=lambda m: f"{what}: {m}"
    )


def _dls(case, dtype=torch.float32):
    quantizer = DLS(int(case["name"][5]), mode="official")
    quantizer.init_from(case["x"])
    with torch.no_grad():
        for ours, theirs in (("w", "w1"), ("v", "w2")):
            getattr(quantizer, ours).copy_(torch.cat([case["params"][f"{theirs}_{s}"].view(1) for s in STATISTICS]))
    return quantizer.to(dtype)


def _run(quantizer, case, dtype=torch.float32):
    x = case["x"].to(dtype, copy=True).requires_grad_()
    y = quantizer(x)
    y.backward(case["grad_out"].to(dtype))
    return y.detach(), x.grad


def _expected_dls(case):
    return {
        k: torch.cat([case["param_grads"][f"{t}_{s}"].view(1) for s in STATISTICS])
        for k, t in (("w", "w1"), ("v", "w2"))
    }


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("rfa")])
def test_rfa(name):
    case = CASES[name]
    quantizer = RFA(int(name[5]), mode="official")
    quantizer.init_from(case["x"])
    if name.endswith("init"):
        for key, value in case["params"].items():
            torch.testing.assert_close(getattr(quantizer, key).data, value.view(-1))
    with torch.no_grad():
        for key, value in case["params"].items():
            getattr(quantizer, key).copy_(value.view(-1))
    y, grad = _run(quantizer, case)
    _close(y, case["y"], "y")
    _close(grad, case["grad_x"], "grad_x")
    for key, expected in case["param_grads"].items():
        _close(getattr(quantizer, key).grad, expected, key)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("rfa")])
def test_rfa_stable_equals_official_for_ordered_thresholds(name):
    """The stored official thresholds are sorted with gaps above 0.1: stable mode uses them unchanged."""
    case, results = CASES[name], []
    for mode in ("official", "stable"):
        quantizer = RFA(int(name[5]), mode=mode)
        state = {k: v.view(-1) for k, v in case["params"].items()}
        quantizer.load_state_dict(state | {"initialized": torch.tensor(True), "observed": torch.tensor(1)})
        results.append((*_run(quantizer, case), *(p.grad for p in quantizer.parameters())))
    for official, stable in zip(*results, strict=True):
        assert torch.equal(official, stable)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("dls")])
def test_dls(name):
    case = CASES[name]
    quantizer = _dls(case)
    assert bool(quantizer.signed) == (not name.endswith("unsigned"))
    y, grad = _run(quantizer, case)
    _close(y, case["y"], "y")
    _close(grad, case["grad_x"], "grad_x")
    expected = _expected_dls(case)
    _close(quantizer.w.grad, expected["w"], "w")
    missing = expected["v"] - quantizer.v.grad
    if (case["x"].mean() * (1 + case["params"]["w2_mean"])).abs() < 1e-6:
        # The initial v makes mean(x + beta) exactly zero in theory, so the derivative of |mean(x + beta)| that
        # reaches v is +k, 0 or -k times the statistics, as the last bit of the release's float32 sum fell.
        stats = torch.stack([case["x"].mean(), case["x"].std(), case["x"].min(), case["x"].max()])
        kink = quantizer.w.grad[1] / stats[1] * case["params"]["w1_mean"]
        steps = torch.round(missing[3] / (kink * stats[3])) if kink != 0 else torch.zeros(())
        assert abs(steps) <= 2
        missing = missing - steps * kink * stats
    _close(expected["v"] - missing, expected["v"], "v")


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("dls")])
def test_dls_in_float64(name):
    """The same arithmetic in float64 agrees as well: the 1e-5 above is the release's float32, not ours."""
    case = CASES[name]
    y, grad = _run(_dls(case, torch.float64), case, torch.float64)
    _close(y.float(), case["y"], "y")
    _close(grad.float(), case["grad_x"], "grad_x")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_lsq_offset_official_is_the_published_formula(bits, signed):
    """No vectors of Act_Quant exist: the formula of its code, differentiated by autograd, in float64."""
    x = torch.randn(4, 50, dtype=torch.float64)
    x = x if signed else x.abs()
    quantizer = LSQOffset(bits, mode="official").double()
    quantizer.init_from(x)
    assert bool(quantizer.signed) == signed
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    torch.testing.assert_close(quantizer.scale.data, (2 * x.abs().mean() / highest**0.5).view(1))
    with torch.no_grad():
        quantizer.offset.add_(0.03)
        quantizer.scale.mul_(0.7)
    upstream = torch.randn_like(x)

    tensors = [t.detach().clone().requires_grad_() for t in (x, quantizer.scale, quantizer.offset)]
    data, scale, offset = tensors
    step = scale_grad(scale, (x.numel() * highest) ** -0.5)
    level = torch.clamp((data + offset) / step, lowest, highest)
    plain = snap(level, level.detach().round()) * step - offset
    expected = torch.autograd.grad(plain, tensors, upstream)

    data = x.clone().requires_grad_()
    y = quantizer(data)
    got = torch.autograd.grad(y, [data, quantizer.scale, quantizer.offset], upstream)
    torch.testing.assert_close(y, plain, rtol=0, atol=1e-12)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
