"""Transforms and methods: what methods do to a network before they quantize it, and the rotations of an option file."""

from __future__ import annotations

import copy

import pytest
import torch
from basicsr.archs import build_network
from tiny_networks import QUANTIZED, SMALLEST, tiny_network

from qmambair_basicsr.layers.info import network_info
from qmambair_basicsr.layers.merging import merge
from qmambair_basicsr.layers.sites import network_sites, parameter_sites
from qmambair_basicsr.layers.transforms import transforms_of
from qmambair_basicsr.ptq import PTQ_METHODS, build_method, quantize
from qmambair_basicsr.ptq.training import full_precision
from qmambair_basicsr.quantizers import SpecError

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


ROTATED = {
    "upsampler": "pixelshuffledirect",
    "embed_dim": 32,
    "depths": [1],
    "d_state": 2,
    "mlp_ratio": 1.0,
    "upscale": 2,
}
OWN = ("MambaQuant", "PTQ4VM", "SPR2Q")
"""Methods with transforms of their own."""


def rotated(method, block=8, **quant):
    kind = {"type": "AnyOrder" if method == "QuantDLLM" else "MinMax", "bits": 4}
    quant = {"weight": kind, "act": PLAIN, "scan": PLAIN, **quant}
    torch.manual_seed(0)
    net = build_network(
        {"type": "QMambaIR", **ROTATED, "quant": quant | {"transforms": {"Hadamard": {"block": block}}}}
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval(), [torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def test_a_rotated_weight_is_set_to_what_its_quantizer_shall_get():
    net, _ = rotated("MinMax")
    turned = 0
    for placed in (p for p in parameter_sites(net) if p.site.operand == "weight"):
        wanted = torch.randn_like(placed.tensor())
        placed.set_tensor(wanted)
        torch.testing.assert_close(placed.tensor(), wanted)
        turned += not torch.equal(getattr(placed.owner, placed.site.parameter).flatten(), wanted.flatten())
    assert turned > 3


@pytest.mark.parametrize(
    "options",
    [
        *({"type": name} for name in sorted(PTQ_METHODS) if name not in OWN),
        {"type": "MinMax", "weights": "gptq", "bias_correction": True},
        {"type": "BRECQ", "lr": 0.0, "act_lr": 0.0, "drop": 0.0},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_methods_quantize_rotated_weights(options):
    """As near to full precision as rounding to nearest is, not rounded where the weights lie before their rotation."""
    errors = []
    for chosen in ({"type": "MinMax"}, options):
        net, images = rotated(chosen["type"])
        full, method = full_precision(net), build_method(chosen)
        quantize(net, method, images, iterations=12 if method.trains else None)
        with torch.no_grad():
            errors.append(sum((net(x) - full(x)).square().mean().item() for x in images))
    assert errors[1] < 3 * errors[0]


@pytest.mark.parametrize("options", [*({"type": name} for name in OWN), {"type": "Quamba", "rotate": True}], ids=str)
def test_methods_with_transforms_of_their_own_refuse_those_of_the_file(options):
    net, images = rotated(options["type"])
    with pytest.raises(SpecError, match=f"{options['type']} has transforms of its own.*leave these out"):
        quantize(net, build_method(options), images)


def test_nothing_to_quantize_is_no_success():
    off = {"type": "Identity"}
    net = build_network({"type": "QMambaIR", **ROTATED, "quant": {"weight": off, "act": off}})
    for name, iterations in (("MinMax", None), ("BlockAP", 4)):
        with pytest.raises(SpecError, match=f"{name} has nothing to quantize"):
            quantize(copy.deepcopy(net), build_method({"type": name}), [torch.rand(1, 3, 8, 8)], iterations)
    net = build_network({"type": "QMambaIR", **ROTATED, "quant": {"act": PLAIN}})
    with pytest.raises(SpecError, match="QMambaIR quantizes none of its own"):
        quantize(net, build_method({"type": "SPR2Q"}), [torch.rand(1, 3, 8, 8)])
