"""The mamba_ssm backend against a stand-in for that package: what it is called with, and that results find their place."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from scan_cases import DIRECTIONS, make, relative_error

from qmambair_basicsr.ops import backend
from qmambair_basicsr.ops.selective_scan import selective_scan
from qmambair_basicsr.ops.ss2d_scan import mamba_ssm, ss2d_scan
from qmambair_basicsr.ops.ss2d_scan.naive import recurrence


def sequence_scan(u, delta, A, B, C, D, bias, softplus):
    """What mamba_ssm computes: u, delta (B, D, L), A (D, N), B, C (B, G, N, L) -> y (B, D, L), last state (B, D, N)."""
    u, delta = (t.unflatten(1, (B.shape[1], -1)) for t in (u, delta))  # (B, G, D / G, L)
    A, D, bias = (None if t is None else t.unflatten(0, (B.shape[1], -1)) for t in (A, D, bias))
    y, h = recurrence(u, delta, A, B, C, D, bias, softplus)
    return y.flatten(1, 2), h.flatten(1, 2)


class _StandIn(torch.autograd.Function):
    """Like mamba_ssm's SelectiveScanFn: one autograd node, the last state without gradient."""

    @staticmethod
    def forward(ctx, softplus, *tensors):
        ctx.softplus = softplus
        ctx.save_for_backward(*tensors)
        y, last = sequence_scan(*tensors, softplus)
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx, dy, _):
        def scan(*given):
            given = iter(given)
            return sequence_scan(*(None if t is None else next(given) for t in ctx.saved_tensors), ctx.softplus)[0]

        _, pull = torch.func.vjp(scan, *(t for t in ctx.saved_tensors if t is not None))
        found = iter(pull(dy))
        return None, *(None if t is None else next(found) for t in ctx.saved_tensors)


@pytest.fixture
def calls(monkeypatch):
    """Puts the stand-in where mamba_ssm would be and returns the list of its calls."""
    record = []

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        record.append({"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias, "z": z})
        y, last = _StandIn.apply(delta_softplus, u, delta, A, B, C, D, delta_bias)
        return (y, last) if return_last_state else y

    interface = types.SimpleNamespace(selective_scan_fn=selective_scan_fn)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    monkeypatch.setattr(mamba_ssm, "DEVICES", ("cpu",))
    monkeypatch.setattr(mamba_ssm, "is_available", lambda: (True, "stand-in"))
    monkeypatch.setenv(backend.ENV, "mamba_ssm")
    mamba_ssm._scan.cache_clear()
    backend.forget()
    yield record
    mamba_ssm._scan.cache_clear()
    backend.forget()


def _run(function, tensors, dtype, weight):
    leaves = {k: t.detach().to(dtype).requires_grad_() for k, t in tensors.items()}
    y = function(**leaves)
    return y.detach(), torch.autograd.grad(y, list(leaves.values()), weight.to(dtype))


@pytest.mark.parametrize("directions", [DIRECTIONS, ("col_rev", "row")])
@pytest.mark.parametrize("optional", [True, False])
def test_directions_become_groups(calls, directions, optional):
    count = len(directions)
    inputs = make(2, 3, 4, count, 5, 2)
    inputs = {k: t for k, t in inputs.items() if optional or k not in ("D", "delta_bias")}
    weight = torch.randn(2, 3, 4, 5)
    got = _run(lambda **t: ss2d_scan(**t, directions=directions), inputs, torch.float32, weight)
    assert len(calls) == 2  # forward, and again in the backward pass
    for call in calls:
        assert call["u"].shape == call["delta"].shape == (2, count * 5, 12)
        assert call["A"].shape == (count * 5, 2)
        assert call["B"].shape == call["C"].shape == (2, count, 2, 12)
        assert call["z"] is None
        assert (call["D"] is None) is (call["delta_bias"] is None) is (not optional)
    first = inputs["x"] if directions[0] == "row" else inputs["x"].transpose(1, 2).flip(1, 2)
    assert torch.equal(calls[0]["u"][:, :5], first.flatten(1, 2).transpose(1, 2))
    want = _run(lambda **t: ss2d_scan(**t, directions=directions), inputs, torch.float64, weight)
    assert relative_error(got[0], want[0]) < 1e-5
    for name, a, b in zip(inputs, got[1], want[1], strict=True):
        assert relative_error(a, b) < 1e-5, name


@pytest.mark.parametrize("apart", [True, False])
def test_explicit_orders_and_outputs_kept_apart(calls, apart):
    inputs, order = make(2, 3, 4, 2, 5, 2), torch.stack([torch.randperm(12) for _ in range(2)])
    if apart:
        inputs["x"] = torch.randn(2, 3, 4, 2, 5)
    weight = torch.randn(2, 3, 4, 2, 5)
    got = _run(lambda **t: ss2d_scan(**t, order=order, merge=False), inputs, torch.float32, weight)
    first = inputs["x"][:, :, :, 0] if apart else inputs["x"]
    assert torch.equal(calls[0]["u"][:, :5], first.flatten(1, 2)[:, order[0]].transpose(1, 2))
    want = _run(lambda **t: ss2d_scan(**t, order=order, merge=False), inputs, torch.float64, weight)
    assert relative_error(got[0], want[0]) < 1e-5
    for name, a, b in zip(inputs, got[1], want[1], strict=True):
        assert relative_error(a, b) < 1e-5, name


def test_sequences_keep_their_layout_and_last_state(calls):
    u, delta, z = (torch.randn(2, 6, 7) for _ in range(3))
    A, B, C = -torch.rand(6, 3) - 0.1, torch.randn(2, 2, 3, 7), torch.randn(2, 2, 3, 7)
    arguments = (u, delta, A, B, C, torch.randn(6), z, torch.randn(6), True)
    y, last = selective_scan(*arguments, return_last_state=True)
    assert calls[0]["u"].shape == (2, 6, 7)
    torch.testing.assert_close(calls[0]["u"], u)
    torch.testing.assert_close(calls[0]["B"], B)
    expected, h = sequence_scan(u, delta, A, B, C, arguments[5], arguments[7], True)
    torch.testing.assert_close(y, expected * F.silu(z), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, h, rtol=1e-5, atol=1e-6)


def test_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(mamba_ssm.importlib.util, "find_spec", lambda name: None)
    assert mamba_ssm.is_available() == (False, "mamba_ssm is not installed")


@pytest.mark.parametrize("says_so", [True, False])
def test_a_package_without_its_kernel_is_named_and_passed_over(monkeypatch, tmp_path, says_so):
    """mamba_ssm 2.3.2 installs without selective_scan_cuda: the interface loads, and the first call would raise."""
    package = tmp_path / "mamba_ssm" / "ops"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    lines = (
        "selective_scan_cuda = None\n" if says_so else ""
    ) + "def selective_scan_fn(*_, **__):\n    raise RuntimeError\n"
    (package / "selective_scan_interface.py").write_text(lines)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.partition(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mamba_ssm, "DEVICES", ("cpu",))
    monkeypatch.setitem(backend._PREFERENCE, "cpu", ("mamba_ssm", "reference"))
    monkeypatch.delenv(backend.ENV, raising=False)
    mamba_ssm._scan.cache_clear()
    backend.forget()
    try:
        usable, reason = mamba_ssm.is_available()
        assert not usable
        assert "selective_scan_cuda" in reason
        chosen = backend.choose("ss2d_scan", ("mamba_ssm", "reference"), torch.zeros(1))
        assert chosen.__name__.endswith("reference")
    finally:
        mamba_ssm._scan.cache_clear()
        backend.forget()
        for name in [n for n in sys.modules if n.partition(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
