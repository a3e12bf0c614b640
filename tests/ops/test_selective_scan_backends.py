"""selective_scan, mamba_ssm's signature, on every backend against float64."""

from __future__ import annotations

import pytest
import torch
from devices import device_for
from instruction_sets import with_instruction_sets
from scan_cases import relative_error

from qmambair_basicsr.ops.backend import backends
from qmambair_basicsr.ops.selective_scan import selective_scan

NAMES = with_instruction_sets([backend.name for backend in backends("ss2d_scan")])


def _inputs(form, batch=2, channels=6, length=9, state=2):
    shape = {"shared": (batch, state, length), "groups": (batch, 2, state, length), "constant": (channels, state)}[form]
    u, delta, z = (torch.randn(batch, channels, length) for _ in range(3))
    A = -torch.rand(channels, state) - 0.1
    B, C = torch.randn(*shape), torch.randn(*shape)
    return [u, delta, A, B, C, torch.randn(channels), z, torch.randn(channels)]


@pytest.mark.parametrize("form", ["shared", "groups", "constant"])
@pytest.mark.parametrize("backend", NAMES)
def test_outputs_gradients_and_last_state(backend, form, use_backend, nan_memory):
    use_backend("ss2d_scan", backend)
    device = device_for(backend)
    tensors = _inputs(form)
    weight = torch.randn(tensors[0].shape)

    def run(dtype, where):
        leaves = [t.detach().to(where, dtype).requires_grad_() for t in tensors]
        y, last = selective_scan(*leaves, delta_softplus=True, return_last_state=True)
        assert not last.requires_grad
        return [y.detach(), last, *torch.autograd.grad(y, leaves, weight.to(y))]

    for got, want in zip(run(torch.float32, device), run(torch.float64, "cpu"), strict=True):
        assert got.shape == want.shape
        assert relative_error(got.cpu(), want) < 1e-5
