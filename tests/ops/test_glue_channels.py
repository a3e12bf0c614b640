"""Channel attention in one call: against the layers in float64, for every instruction set."""

from __future__ import annotations

import pytest
import torch
from instruction_sets import in_use, libraries
from torch import nn

from qmambair_basicsr.ops.glue.channels import attend, attend_weights
from qmambair_basicsr.ops.native_library import is_available

pytestmark = pytest.mark.skipif(not is_available()[0], reason=is_available()[1])


@pytest.fixture(params=list(libraries()) or ["none"], autouse=True)
def instructions(request):
    with in_use(request.param):
        yield request.param


def layers_of(channels, hidden, bias=True):
    torch.manual_seed(channels)
    return [
        nn.Conv2d(channels, hidden, 1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 1, bias=bias),
        nn.Sigmoid(),
    ]


def run(x, layers, threads=1):
    out, before = torch.full(x.shape[1:], torch.nan), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        attend(x, attend_weights(layers), out)()
    finally:
        torch.set_num_threads(before)
    return out


@pytest.mark.parametrize(("count", "channels", "hidden"), [(1, 1, 1), (5, 7, 2), (1300, 60, 2), (513, 97, 33)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_layers_in_float64(count, channels, hidden, bias):
    wide = torch.randn(count, channels + 3) * 3 + 0.2
    x, layers = wide[:, 1 : channels + 1], layers_of(channels, hidden, bias)
    got = run(x, layers)
    exact = nn.Sequential(*layers).double()(x.double().mean(0).view(1, -1, 1, 1)).flatten()
    nn.Sequential(*layers).float()
    assert torch.allclose(got.double(), exact, rtol=3e-7, atol=0)
    assert torch.equal(run(x, layers, 2), got), "bits do not depend on threads"


def test_other_layers_are_not_the_kernel_s():
    layers = layers_of(8, 2)
    assert attend_weights(layers) is not None
    others = [nn.Hardsigmoid()], [nn.Sigmoid(), nn.ReLU()], []
    assert all(attend_weights([*layers[:3], *last]) is None for last in others)
    assert attend_weights([nn.Conv2d(8, 2, 3), *layers[1:]]) is None
    assert attend_weights([nn.Conv2d(8, 2, 1, groups=2), *layers[1:]]) is None
    assert attend_weights([layer.double() for layer in layers]) is None


def test_channels_that_do_not_fit_are_named():
    weights = attend_weights(layers_of(8, 2))
    with pytest.raises(ValueError, match="7 channels"):
        attend(torch.zeros(3, 7), weights, torch.zeros(7))
    with pytest.raises(ValueError, match="8 channels"):
        attend(torch.zeros(3, 8), weights, torch.zeros(7))
