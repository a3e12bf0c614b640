"""A training step through any quantizer can be recorded as a CUDA graph: nothing in it asks the device for a value."""

from __future__ import annotations

import torch
from quantizer_cases import every, make, sample
from recorded_operations import RecordedOperations

from qmambair_basicsr.ops.backend import ENV


@every
def test_forward_and_backward_can_be_recorded(kind, bits, role, options, monkeypatch):
    monkeypatch.setenv(ENV, "reference")  # the stand-in sees PyTorch's operators
    quantizer, x, recorder = make(kind, bits, role, options).train(), sample(), RecordedOperations(torch.device("cpu"))
    place, results = x.clone().requires_grad_(), []
    quantizer(x)

    def step():
        quantizer.zero_grad()
        place.grad = None
        out = quantizer(place)
        out.square().sum().backward()
        return [out.detach(), place.grad, *(p.grad for p in quantizer.parameters() if p.grad is not None)]

    step()
    recorder.record(lambda: results.extend(step()))
    with torch.no_grad():
        place.copy_(sample(seed=1))
    want = [t.clone() for t in step()]
    recorder.replay()
    assert all(torch.equal(a, b) for a, b in zip(results, want, strict=True))
