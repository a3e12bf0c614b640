"""selective_scan: mamba_ssm's layouts against the recurrence, and memory that grows with the inputs only."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from qmambair_basicsr.ops.selective_scan import selective_scan
from qmambair_basicsr.ops.ss2d_scan.naive import recurrence


def written_out(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """The plain recurrence with mamba_ssm's arguments: output and last state. Every channel is a scan of its own."""
    batch, channels, length = u.shape

    def spread(t):  # -> (B, D, N, L)
        if t.dim() == 2:
            return t[None, :, :, None].expand(batch, -1, -1, length)
        t = t.unsqueeze(1) if t.dim() == 3 else t
        return t.repeat_interleave(channels // t.shape[1], 1)

    def single(t, axis):
        return None if t is None else t.unsqueeze(axis)

    weights = single(D, 1), single(delta_bias, 1), delta_softplus
    y, h = recurrence(single(u, 2), single(delta, 2), single(A, 1), spread(B), spread(C), *weights)
    y = y.squeeze(2)
    return (y if z is None else y * F.silu(z)), h.squeeze(2)


LAYOUTS = {"shared": (2, 3, 70), "groups": (2, 2, 3, 70), "constant": (6, 3)}


@pytest.mark.parametrize("c_layout", LAYOUTS)
@pytest.mark.parametrize("b_layout", LAYOUTS)
def test_layouts(b_layout, c_layout):
    u, delta, z = (torch.randn(2, 6, 70, dtype=torch.float64) for _ in range(3))
    B, C = (torch.randn(LAYOUTS[name], dtype=torch.float64) for name in (b_layout, c_layout))
    A, D, bias = -torch.rand(6, 3, dtype=torch.float64) * 4, torch.randn(6).double(), torch.randn(6).double()
    tensors = [t.requires_grad_() for t in (u, delta, A, B, C, D, z, bias)]
    y, last = selective_scan(*tensors, delta_softplus=True, return_last_state=True)
    want, state = written_out(*tensors, delta_softplus=True)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, state.detach(), rtol=1e-10, atol=1e-10)
    assert not last.requires_grad
    weight = torch.randn_like(y)
    got, expected = (torch.autograd.grad((value * weight).sum(), tensors) for value in (y, want))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def test_float32_without_options():
    u, delta, B, C = torch.randn(2, 5, 90), torch.rand(2, 5, 90), torch.randn(2, 4, 90), torch.randn(2, 4, 90)
    A = -torch.rand(5, 4) * 8
    y = selective_scan(u, delta, A, B, C)
    want, _ = written_out(*(t.double() for t in (u, delta, A, B, C)))
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"A": torch.ones(5, 4)}, ValueError, r"\(2, 6, 20\) and \(5, 4\)"),
        ({"B": torch.ones(2, 4, 4, 20)}, ValueError, "G dividing D"),
        ({"A": torch.ones(6, 4, dtype=torch.complex64)}, TypeError, "complex"),
    ],
)
def test_wrong_inputs_are_named(change, error, words):
    inputs = {"u": torch.ones(2, 6, 20), "delta": torch.ones(2, 6, 20), "A": -torch.ones(6, 4)}
    inputs |= {"B": torch.ones(2, 4, 20), "C": torch.ones(2, 4, 20)}
    with pytest.raises(error, match=words):
        selective_scan(**{**inputs, **change})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_of_a_long_sequence_grows_with_the_inputs():
    """L = 65536, D = 32, N = 16: the states alone would take 134 MB, twice in the backward pass."""
    code = """
import torch
from pathlib import Path
from qmambair_basicsr.ops.selective_scan import selective_scan

def run(length):
    u, delta = torch.randn(1, 32, length, requires_grad=True), torch.rand(1, 32, length, requires_grad=True)
    B, C = torch.randn(1, 16, length, requires_grad=True), torch.randn(1, 16, length, requires_grad=True)
    A = (-torch.ones(32, 16)).requires_grad_()
    selective_scan(u, delta, A, B, C, delta_softplus=True).sum().backward()
    return sum(t.numel() * 4 for t in (u, delta, B, C))

def high():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

run(100)
before = high()
size = run(65536)
print((high() - before) / size)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 6  # inputs, their gradients, and channels-last copies of both
