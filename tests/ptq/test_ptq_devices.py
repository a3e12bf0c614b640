"""Methods on a network that is not on the CPU: nothing that they make stays behind there."""

from __future__ import annotations

import pytest
import torch
from elsewhere import elsewhere, is_there, put
from test_every_method import QUICK, network

from qmambair_basicsr.ptq import PTQ_METHODS, build_method, quantize
from qmambair_basicsr.ptq.mixed import scores

SMALL = {"samples": 64}


def images(count=2):
    generator = torch.Generator().manual_seed(1)
    return [put(torch.rand(1, 3, 4, 4, generator=generator)) for _ in range(count)]


@pytest.mark.parametrize("method", sorted(PTQ_METHODS))
def test_tensors_of_two_devices_never_meet(method):
    net = network("MambaIRv2Light", method)
    made = build_method(
        {"type": method, **QUICK.get(method, {}), **(SMALL if "samples" in PTQ_METHODS[method].options else {})}
    )
    with elsewhere(net):
        quantize(net, made, images(), iterations=4 if made.trains else None)
    assert all(is_there(state) for state in net.state_dict().values())


def test_sensitivity():
    net = network("MambaIRv2Light", "MinMax")
    with elsewhere(net):
        assert scores(net, images(1), (4,))


def test_a_tensor_left_behind_is_noticed():
    linear = torch.nn.Linear(2, 2)
    with elsewhere(linear), pytest.raises(AssertionError, match="meets one on the device"):
        linear(put(torch.ones(1, 2))) + torch.zeros(2)
