"""What methods do to a network before they quantize it leaves its output in FP64 as it is, on every network."""

from __future__ import annotations

import copy

import pytest
import torch
from basicsr.archs import build_network
from tiny_networks import QUANTIZED, SMALLEST, tiny_network

from qmambair_basicsr.layers.info import network_info
from qmambair_basicsr.layers.merging import merge
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.layers.transforms import transforms_of
from qmambair_basicsr.ptq import build_method
from qmambair_basicsr.ptq.training import full_precision

PLAIN = {"type": "MinMax", "bits": 4}
SHORT = {"depths": [1], "num_blocks": [1, 0, 0, 1], "num_refinement_blocks": 1}  # blocks everywhere that names them
METHODS = {
    "MambaQuant": {"type": "MambaQuant"},
    "MambaQuant released": {"type": "MambaQuant", "orientation": "released"},
    "Quamba": {"type": "Quamba", "rotate": True},
    "PTQ4VM": {"type": "PTQ4VM", "samples": 64},
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_methods_change_no_output_before_they_quantize(name):
    torch.manual_seed(0)
    quant = dict.fromkeys(("weight", "act", "scan", "attention", "routing"), PLAIN)
    net = build_network(tiny_network(name, quant, **SMALLEST | SHORT)).eval().double()
    with torch.no_grad():
        for parameter in net.parameters():  # away from where they start
            parameter.add_(0.05 * torch.randn_like(parameter))
        x = torch.rand(1, network_info(net).channels, 8, 16, dtype=torch.float64)
        wanted = full_precision(net)(x)
    scanned = "scan" in {placed.site.kind for placed in network_sites(net)}
    for label, options in METHODS.items():
        changed, method = copy.deepcopy(net), build_method(options)
        if method.trains:  # transforms stay beside the network while they are trained
            method.open(changed)
            method.start([x])
            assert_same(changed, x, wanted)
            merge(changed, method.norms(changed))
        else:
            method.transform(changed, [x])
        assert not transforms_of(changed), label
        assert_same(changed, x, wanted)
        parameters = dict(changed.named_parameters())
        moved = [key for key, p in net.named_parameters() if key in parameters and not torch.equal(p, parameters[key])]
        assert bool(moved) == scanned, label


def assert_same(net, x, wanted):
    with torch.no_grad():
        torch.testing.assert_close(full_precision(net)(x), wanted, rtol=1e-10, atol=1e-10)
