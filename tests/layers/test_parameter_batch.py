"""All quantized parameters in one call for each kind of operator: the same bits, whatever else happens to the network."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from torch.utils.checkpoint import checkpoint

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.parameter_batch import ParameterBatch, batch_of
from qmambair_basicsr.layers.sites import parameter_sites, quantizers_of
from qmambair_basicsr.layers.transforms import Smoothing, attach
from qmambair_basicsr.quantizers import QuantizerSpec, build_quantizer

SMALL = {
    "embed_dim": 30,
    "depths": [1, 1],
    "d_state": 3,
    "mlp_ratio": 1.2,
    "drop_path_rate": 0.0,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}
KINDS = {"weight": "RFA", "act": "LSQOffset", "scan": "DLS"}


def quant(bits=4, **kinds):
    return {site: {"type": kind, "bits": bits} for site, kind in (KINDS | kinds).items()}


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = build_network({"type": "QMambaIR", **SMALL, "quant": quant()})
    calibrate(net, [torch.rand(2, 3, 8, 8)])
    return net.train()


def gradients(net, one_by_one=False):
    """Output and gradients of a training step, with the parameters quantized together or each by its layer."""
    torch.manual_seed(1)
    net.zero_grad()
    hooks = net._forward_pre_hooks.copy()
    if one_by_one:
        net._forward_pre_hooks.clear()
    out = net(torch.rand(2, 3, 8, 8))
    net._forward_pre_hooks.update(hooks)
    out.square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def same_bits(net):
    """Whether that changes anything."""
    (out, grads), (want, expected) = gradients(net), gradients(net, one_by_one=True)
    assert torch.equal(out, want)
    assert grads.keys() == expected.keys()
    return all(torch.equal(grads[name], expected[name]) for name in grads)


def calls_of(net, monkeypatch):
    """How many parameters their quantizers' modules are called for in a training step."""
    from qmambair_basicsr.quantizers.base import Quantizer

    found, forward = [], Quantizer.forward
    parameters = {id(placed.quantizer) for placed in parameter_sites(net)}
    with monkeypatch.context() as patch:
        patch.setattr(Quantizer, "forward", lambda this, x: (found.append(id(this)), forward(this, x))[1])
        # `together` asks whether a class has a forward of its own
        patch.setattr("qmambair_basicsr.quantizers.together._plain", lambda kind, _: kind.__name__ != "Identity")
        gradients(net)
    return len(parameters.intersection(found))


@pytest.mark.parametrize(
    "kinds", [{}, {"weight": "LSQ", "scan": "LSQ"}, {"weight": "DoReFa", "act": "PAMS"}, {"weight": "QuantSR"}], ids=str
)
def test_the_same_bits(kinds):
    net = build_network({"type": "QMambaIR", **SMALL, "quant": quant(**kinds)})
    calibrate(net, [torch.rand(2, 3, 8, 8)])
    assert same_bits(net.train())


def test_layers_are_not_asked(net, monkeypatch):
    assert calls_of(net, monkeypatch) == 0
    net._forward_pre_hooks.clear()
    assert calls_of(net, monkeypatch) == len(parameter_sites(net))


def test_accumulated_gradients(net):
    def accumulate():
        net.zero_grad()
        for seed in range(2):
            torch.manual_seed(seed)
            net(torch.rand(2, 3, 8, 8)).square().mean().backward()
        return [p.grad.clone() for p in net.parameters()]

    together = accumulate()
    net._forward_pre_hooks.clear()
    for a, b in zip(together, accumulate(), strict=True):
        assert torch.equal(a, b)


def test_two_passes_before_one_backward(net):
    first, second = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    (net(first).mean() + net(second).mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_changes_between_steps_are_seen(net, monkeypatch):
    gradients(net)
    places = parameter_sites(net)
    with torch.no_grad():
        places[0].quantizer.scale.mul_(1.5)
    for placed in places[1:3]:  # progressive bits
        placed.quantizer.bits, placed.quantizer.qmin, placed.quantizer.qmax = 3, -4, 3
        placed.quantizer.thresholds = torch.nn.Parameter(torch.arange(-4.0, 4.0))
    place = next(placed for placed in places[3:] if placed.site.role == "weight")
    other = build_quantizer(QuantizerSpec("LSQ", 2), place.site)
    other.init_from(place.tensor())
    place.replace(other)
    assert same_bits(net)
    assert calls_of(net, monkeypatch) == 0


def test_uninitialised_calibrating_watched_and_transformed_sites_are_left_to_their_layers(net, monkeypatch):
    quantizers = [placed.quantizer for placed in parameter_sites(net)]
    seen = []
    quantizers[0].register_forward_hook(lambda *_: seen.append(0))
    quantizers[1].initialized.fill_(False)
    quantizers[1]._ready = False
    attach(net, {"layers.0.residual_group.blocks.0.self_attention.in_proj": Smoothing(torch.full((30,), 2.0))})
    assert calls_of(net, monkeypatch) == 3
    assert seen
    assert quantizers[1].is_initialized()
    assert same_bits(net)
    for quantizer in quantizers:
        quantizer.calibrating = True
    assert calls_of(net, monkeypatch) == len(quantizers)


def test_evaluation_keeps_its_values_and_a_layer_alone_quantizes_for_itself(net):
    gradients(net)
    layer = net.layers[0].residual_group.blocks[0].self_attention.in_proj
    x = torch.rand(1, 30)
    for _ in range(2):  # a graph of its own each time
        layer(x).sum().backward()
    trained = layer(x).detach()
    with torch.no_grad():
        layer.weight.mul_(0.5)
    assert not torch.equal(layer(x).detach(), trained)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        before = net.eval()(x)
        assert batch_of(net)._loans == []
        layer.weight.mul_(0.5)
        assert not torch.equal(net(x), before)


@pytest.mark.parametrize("reentrant", [True, False])
def test_parts_that_are_repeated_in_the_backward_pass(net, reentrant):
    plain = gradients(net)[1]
    block = net.layers[0].residual_group.blocks[0]
    forward = block.forward
    block.forward = lambda *inputs: checkpoint(forward, *inputs, use_reentrant=reentrant)
    repeated = gradients(net)[1]
    for name in plain:
        torch.testing.assert_close(repeated[name], plain[name])


def test_an_error_in_the_forward_pass_leaves_nothing_behind(net):
    with pytest.raises(ValueError, match="expected an input"):
        net(torch.rand(2, 5, 8, 8))
    assert same_bits(net)


def test_copies_have_a_hook_of_their_own(net):
    gradients(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert isinstance(batch_of(twin), ParameterBatch)
        assert batch_of(twin) is not batch_of(net)
        with torch.no_grad():
            for p in twin.parameters():
                p.mul_(1.01)
        assert same_bits(twin)
    assert same_bits(net)


def test_operator_calls_of_a_training_step(monkeypatch):
    """At most 1.5 times those of the network in full precision."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "kernels" / "bench"))
    from operator_calls import operator_calls

    x, counts = torch.rand(1, 3, 8, 8), {}
    for kind in ("MambaIR", "QMambaIR"):
        torch.manual_seed(0)
        net = build_network({"type": kind, **SMALL, **({"quant": quant()} if kind[0] == "Q" else {})})
        if quantizers_of(net):
            calibrate(net, [x])
        optimizer = torch.optim.Adam(net.train().parameters(), fused=True)

        def step(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            net(x).mean().backward()
            optimizer.step()

        step()  # the first one makes the optimizer's state
        counts[kind] = operator_calls(step)
    assert counts["QMambaIR"] <= 1.5 * counts["MambaIR"], counts
