"""Networks with quantized states: the states are kept in one tensor only for who has to see them, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from basicsr.archs import build_network
from tiny_networks import QUANTIZED, SMALLEST, kinds_of, tiny_options

from qmambair_basicsr.archs import ss2d
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.info import network_info
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.lowering import lower
from qmambair_basicsr.ops.backend import exporting
from qmambair_basicsr.ptq.bounds import TrainedBounds, train_bounds
from qmambair_basicsr.quantizers import LSQ, MinMax, Site
from qmambair_basicsr.quantizers.together import rounding_of

MINMAX = {"type": "MinMax", "bits": 4}
STATEFUL = [name for name in QUANTIZED if "state" in kinds_of(name, tiny_options(name, **SMALLEST))]


def network(name, bits=4, **options):
    torch.manual_seed(0)
    quant = {"act": MINMAX, "scan": MINMAX, "state": {"type": "MinMax", "bits": bits, **options}}
    net = build_network({"type": name, "quant": quant, **tiny_options(name, **SMALLEST)}).double().eval()
    x = torch.rand(1, network_info(net).channels, 8, 16, dtype=torch.float64)
    calibrate(net, [x])
    return net, 1.1 * x


def states_of(net):
    return [placed for placed in network_sites(net) if placed.site.kind == "state"]


def watched(net):
    """A copy whose states somebody looks at."""
    net, seen = copy.deepcopy(net), []
    for placed in states_of(net):
        placed.quantizer.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    return net, seen


def results(net, x):
    y = net(x)
    leaves = {n: p for n, p in net.named_parameters() if p.requires_grad}
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    grads = torch.autograd.grad((y * weight).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_same_without_states(monkeypatch, net, x):
    other, seen = watched(net)
    want = results(other, x)
    assert seen and all(t.ndim == 6 for t in seen)
    with monkeypatch.context() as patch:
        patch.setattr(ss2d, "scan_with_states", None)
        got = results(net, x)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("name", STATEFUL)
def test_states_are_not_kept(name, monkeypatch):
    net, x = network(name)
    for placed in states_of(net):
        placed.quantizer.requires_grad_(True)
    assert_same_without_states(monkeypatch, net, x)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_bounds_in_training(bits, monkeypatch):
    net, x = network("QMambaIRv2Light", bits=bits)
    upper = [placed.quantizer.upper.detach() for placed in states_of(net)]
    train_bounds(states_of(net))
    for placed, bound in zip(states_of(net), upper, strict=True):
        assert isinstance(placed.quantizer, TrainedBounds)
        placed.quantizer.set_bounds(torch.zeros_like(bound), bound)
        placed.quantizer.requires_grad_(True)
    assert_same_without_states(monkeypatch, net, x)


def test_the_integer_network_keeps_none_either(monkeypatch):
    net, x = network("QMambaIR")
    integer = lower(net)
    with torch.no_grad():
        want = integer(x)
        monkeypatch.setattr(ss2d, "scan_with_states", None)
        torch.testing.assert_close(integer(x), want, rtol=0, atol=0)
        grid = next(m for n, m in integer.named_modules() if n.endswith("sites.h.grid"))
        grid.register_forward_hook(lambda *_: None)
        with pytest.raises(TypeError, match="NoneType"):
            integer(x)


def test_who_has_to_see_the_states_does():
    site = Site("state", "act", 4, -1, part="h")
    quantizer = MinMax(4, site)
    quantizer.set_bounds(torch.tensor(-1.0), torch.tensor(2.0))
    assert rounding_of(quantizer) is not None
    handle = quantizer.register_forward_pre_hook(lambda *_: None)
    assert rounding_of(quantizer) is None
    handle.remove()
    quantizer.calibrating = True
    assert rounding_of(quantizer) is None
    quantizer.calibrating = False
    quantizer.forward = lambda x: x
    assert rounding_of(quantizer) is None
    del quantizer.forward
    assert rounding_of(quantizer) is not None

    class Other(MinMax):
        def quantize(self, x):
            return x

    for other in (MinMax(4, site), MinMax(4, site, granularity="channel"), LSQ(4, site), Other(4, site)):
        if not isinstance(other, MinMax) or other.dim is not None or isinstance(other, Other):
            other.init_from(torch.randn(3, 4))
        assert rounding_of(other) is None  # the first is not calibrated


def test_an_exported_graph_has_the_states_in_the_open():
    net, _ = network("QMambaIR")
    placed = states_of(net)[0]
    assert placed.owner.site_rounding("h") is not None
    with exporting():
        assert placed.owner.site_rounding("h") is None
