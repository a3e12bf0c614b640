"""The training step of every quantized network can be recorded: nothing in it asks the device for a value."""

from __future__ import annotations

import copy

import pytest
import torch
from basicsr.archs import build_network
from recorded_operations import RecordedOperations
from tiny_networks import QUANTIZED, SMALLEST, described, tiny_options

from qmambair_basicsr.layers.info import size_multiple
from qmambair_basicsr.ops.backend import ENV

QUANT = {
    "weight": {"type": "RFA", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
}


def step(net, x):
    net.zero_grad()
    loss = net(x).square().mean()
    loss.backward()
    with torch.no_grad():
        for p in net.parameters():
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-3)
    return loss.detach()


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_step_can_be_recorded(name, monkeypatch):
    monkeypatch.setenv(ENV, "reference")  # the stand-in sees PyTorch's operators
    torch.manual_seed(0)
    net = build_network(described(name, tiny_options(name, **SMALLEST), QUANT)).train()
    side = size_multiple(net)
    side *= -(-8 // side)
    batches = torch.rand(3, 1, 3, side, side)
    for x in batches[:2]:
        torch.manual_seed(1)
        step(net, x)
    eager, place, recorder = copy.deepcopy(net), torch.zeros_like(batches[0]), RecordedOperations(torch.device("cpu"))
    net.zero_grad()
    losses = []
    recorder.record(lambda: losses.append(step(net, place)))
    for seed, x in enumerate(batches):
        torch.manual_seed(seed)
        want = step(eager, x)
        place.copy_(x)
        torch.manual_seed(seed)
        recorder.replay()
        assert torch.equal(losses[0], want)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), eager.state_dict().values(), strict=True))
