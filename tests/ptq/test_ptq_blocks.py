"""Building blocks by their properties: rounding that beats the nearest, transforms that change nothing, captured blocks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import tiny_options

from qmambair_basicsr.archs.scan_states import scan_with_states
from qmambair_basicsr.calibration import ChannelMeans, RunningPercentile, SampleObserver
from qmambair_basicsr.layers.hadamard import hadamard, rotation
from qmambair_basicsr.layers.merging import input_sources, merge
from qmambair_basicsr.layers.sites import network_sites, parameter_sites
from qmambair_basicsr.layers.transforms import Rotation, Smoothing, attach, places
from qmambair_basicsr.ops.ss2d_scan import ss2d_scan
from qmambair_basicsr.ptq import search
from qmambair_basicsr.ptq.adaround import AdaRound, beta, regulariser
from qmambair_basicsr.ptq.bias_correction import correct_biases, output_means
from qmambair_basicsr.ptq.blockwise import capture, units_of
from qmambair_basicsr.ptq.gptq import gptq, gptq_network, matrices
from qmambair_basicsr.ptq.quamba2 import channel_groups, ordered_means, ward
from qmambair_basicsr.ptq.ranges import quantized_sites, set_ranges
from qmambair_basicsr.ptq.training import full_precision
from qmambair_basicsr.quantizers import MinMax, Site

PLAIN = {"type": "MinMax", "bits": 4}
ROWS = {**PLAIN, "granularity": "channel"}
V2 = {"embed_dim": 12, "d_state": 4, "depths": [2], "num_heads": [2], "window_size": 4, "inner_rank": 6, "num_tokens": 5,
      "upscale": 2, "upsampler": "pixelshuffledirect", "mlp_ratio": 1.0, "eval_routing": "argmax"}  # fmt: skip
LIGHT = {"embed_dim": 30, "depths": [1], "d_state": 2, "mlp_ratio": 1.2, "upscale": 2}
NETWORKS = {
    "light": {"type": "QMambaIR", "upsampler": "pixelshuffledirect", **LIGHT},
    "classic": {"type": "QMambaIR", "upsampler": "pixelshuffle", **LIGHT},
    "unet": {"type": "QMambaIRUNet", "dim": 30, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "d_state": 2},
    "v2": {"type": "QMambaIRv2", **V2},
    "v2light": {"type": "QMambaIRv2Light", **V2},
} | {
    name: {"type": f"Q{name}", **tiny_options(f"Q{name}", depths=[1], dim=12, num_blocks=[1, 0, 0, 1], d_state=2)}
    for name in ("MaIR", "MaIRUNet", "EAMamba", "VmambaIR")
}


def network(name, dtype=torch.float32, **quant):
    torch.manual_seed(0)
    config = copy.deepcopy(NETWORKS[name]) | {"quant": {"weight": ROWS, "act": PLAIN, "scan": PLAIN, **quant}}
    net = build_network(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


# -- rounding -------------------------------------------------------------------------------------------------------


def layer(seed, bits=3):
    """A linear layer on correlated inputs, and the quantizer of its weight."""
    torch.manual_seed(seed)
    weight = torch.randn(16, 24)
    x = torch.randn(300, 24) @ (torch.randn(24, 24) / 24**0.5 + torch.eye(24))
    quantizer = MinMax(bits, Site.of_weight(16, shape=(16, 24)), granularity="channel")
    quantizer.init_from(weight)
    return weight, x, quantizer


def output_error(weight, x, done):
    return (x @ (done - weight).T).square().sum().item()


def test_gptq_beats_rounding_to_nearest_on_20_of_20_layers():
    wins = 0
    for seed in range(20):
        weight, x, quantizer = layer(seed)
        placed = type("Placed", (), {"quantizer": quantizer})
        ((_, matrix, grid),) = matrices(placed, weight, 1)
        done = gptq(matrix, x.T @ x, grid)
        nearest = quantizer(weight).detach()
        torch.testing.assert_close(quantizer(done).detach(), done)  # on the grid: the quantizer keeps it
        wins += output_error(weight, x, done) < output_error(weight, x, nearest)
    assert wins == 20


def test_adaround_beats_rounding_to_nearest_on_20_of_20_layers():
    wins = 0
    for seed in range(20):
        weight, x, quantizer = layer(seed)
        module, wanted = AdaRound(quantizer, weight), x @ weight.T
        module.start(weight)
        optimizer, total = torch.optim.Adam([module.V], 0.05), 150
        scale = output_error(weight, x, quantizer(weight).detach()) / wanted.numel()
        for i in range(total):
            loss = (x @ module(weight).T - wanted).square().mean() / scale
            if i >= 0.2 * total:
                loss = loss + 0.01 * regulariser(module.V, beta(i, total))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            done = module(weight)
        torch.testing.assert_close(quantizer(done).detach(), done)
        wins += output_error(weight, x, done) < output_error(weight, x, quantizer(weight).detach())
    assert wins == 20


@pytest.mark.parametrize("name", ["light", "v2light"])
def test_gptq_of_a_network(name):
    """Weights of every kind of product end up on the grids of their own quantizers, which keep them."""
    net, images = network(name), [torch.rand(1, 3, 8, 12) for _ in range(2)]
    set_ranges(net, images, quantized_sites(net, "test"), lambda placed, sample: (sample.low, sample.high))
    before = {p.site.label: p.tensor().clone() for p in parameter_sites(net) if p.site.operand == "weight"}
    gptq_network(net, images)
    for placed in parameter_sites(net):
        if placed.site.operand == "weight":
            done = placed.tensor()
            torch.testing.assert_close(placed.quantizer(done).detach(), done, atol=1e-5, rtol=1e-4)
            if done.shape[-1] > 1:  # a row of one weight is its own range
                assert not torch.equal(done, before[placed.site.label])


# -- transforms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [48, 60, 72, 120, 132, 180, 216, 264, 348, 360, 28, 36, 96, 144])
def test_hadamard(order):
    matrix = hadamard(order)
    assert (matrix.abs() == 1).all()
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [174, 10, 22, 17, 3])
def test_orders_without_a_hadamard_matrix(order):
    assert hadamard(order) is None
    turn = rotation(order, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turn @ turn.T, torch.eye(order, dtype=torch.float64))


@pytest.fixture(scope="module")
def nets():
    made = {name: full_precision(network(name, torch.float64)) for name in NETWORKS}
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return {name: (net, x, net(x)) for name, net in made.items()}


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31), online=st.booleans())
@pytest.mark.parametrize("name", NETWORKS)
def test_transforms_change_nothing_before_quantization(nets, name, seed, online):
    """Factors at every place, rotations where there are no groups; then factors merged where a module computes the input."""
    net, x, wanted = nets[name]
    net, generator = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    sources, known = input_sources(net), places(net)
    assert sources and set(sources) <= set(known)
    where = known if online else sources
    made = {}
    for place in where:
        layout = known[place].layout
        turned = online and layout.groups == 1 and torch.rand((), generator=generator) < 0.5
        factors = torch.rand(layout.channels, generator=generator, dtype=torch.float64) + 0.5
        made[place] = Rotation(rotation(layout.channels, generator)) if turned else Smoothing(factors)
    attach(net, made)
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted, atol=1e-10, rtol=1e-9)
        left = merge(net, None if online else sources)
        assert bool(left) == online
        torch.testing.assert_close(net(x), wanted, atol=1e-10, rtol=1e-9)


# -- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("directions", [("row",), ("row", "col", "row_rev", "col_rev")], ids=["one", "four"])
def test_scan_with_states_in_the_open(directions, apart):
    torch.manual_seed(0)
    b, h, w, k, d, n = 2, 3, 5, len(directions), 4, 3
    shapes = {
        "x": (b, h, w, k, d) if apart else (b, h, w, d), "delta": (b, h, w, k, d), "a": (k, d, n),
        "b": (b, h, w, k, n), "c": (b, h, w, k, n), "skip": (k, d), "bias": (k, d),
    }  # fmt: skip
    given_ = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    x, delta, a, b_, c, skip, bias = given_.values()
    for merged in (True, False):
        wanted = ss2d_scan(x, delta, -a.exp(), b_, c, skip, bias, directions=directions, merge=merged)
        found = scan_with_states(x, delta, -a.exp(), b_, c, skip, bias, lambda s: s, merged, directions)
        torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    grads = [torch.autograd.grad((y * weights).sum(), list(given_.values())) for y in (wanted, found)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_state_is_a_site_only_where_it_is_quantized():
    kinds = {kind: sum(p.site.kind == "state" for p in network_sites(network("light", **quant)))
             for kind, quant in (("no", {}), ("yes", {"state": PLAIN}))}  # fmt: skip
    assert kinds == {"no": 0, "yes": 1}
    off = {"type": "Identity"}
    net = network("light", weight=off, act=off, scan=off, state={"type": "MinMax", "bits": 2})
    images = [torch.rand(1, 3, 8, 8)]
    set_ranges(net, images, quantized_sites(net, "test"), lambda placed, sample: (sample.low, sample.high))
    full = full_precision(net)
    assert full.state_dict().keys() == {key for key in net.state_dict() if ".h." not in key}
    with torch.no_grad():
        assert 0 < (net(images[0]) - full(images[0])).abs().max() < 1


# -- blocks, statistics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_captured_block_runs_as_in_its_network(name):
    net = full_precision(network(name))
    images = [torch.rand(1, 3, 16, 16) for _ in range(2)]
    for unit in list(units_of(network(name)))[:3]:
        found = capture(net, unit, images, outputs=True)
        for _ in range(2):  # what it is given is not used up
            joined = found.run(net.get_submodule(unit), torch.cat(found.inputs)).detach()
            torch.testing.assert_close(joined, torch.cat(found.outputs), atol=1e-5, rtol=1e-4)


def test_routing_noise_of_a_captured_block_is_that_of_its_place():
    config = copy.deepcopy(NETWORKS["v2light"]) | {"eval_routing": "gumbel"}
    torch.manual_seed(0)
    net = full_precision(build_network(config | {"quant": {"weight": ROWS}}).eval())
    image = torch.rand(1, 3, 16, 16)
    for unit in units_of(net) or [f"layers.0.residual_group.layers.{i}" for i in range(2)]:
        found = capture(net, unit, [image], outputs=True)
        with torch.enable_grad():  # as it was captured
            assert torch.equal(found.run(net.get_submodule(unit), found.inputs[0]), found.outputs[0])


def test_bias_correction_takes_the_mean_error_off():
    net, images = network("light"), [torch.rand(1, 3, 12, 12) for _ in range(2)]
    full = full_precision(net)
    set_ranges(net, images, quantized_sites(net, "test"), lambda placed, sample: (sample.low, sample.high))
    names = ["layers.0.conv", "layers.0.residual_group.blocks.0.conv_blk.cab.3"]
    wanted = output_means(full, names, images)

    def error():
        found = output_means(net, names, images)
        return sum((found[name] - wanted[name]).abs().mean().item() for name in names)

    before = error()
    correct_biases(net, full, images)
    assert error() < 0.2 * before


def test_groups_of_channels():
    torch.manual_seed(0)
    means = torch.rand(40)
    labels = channel_groups(means, 8, 4, 4)
    assert set(labels.tolist()) == set(range(16))
    for head_group in range(4):
        inside = (labels // 4 == head_group).nonzero().flatten()
        order = means[inside].argsort()
        assert torch.equal(labels[inside][order], labels[inside].sort()[0])  # ascending with the magnitudes
    assert channel_groups(torch.rand(3), 8, 4, 4).unique().numel() == 3
    assert ordered_means(torch.tensor([0.0, 0.1, 5.0, 5.1]), 2).tolist() == [0, 0, 1, 1]
    assert ward(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 1.0], [1.0, 0.1]]), 2) == [[0, 2], [1, 3]]


def test_observers_of_values():
    x = torch.randn(3, 50, 4)
    sample = SampleObserver(0, -1)
    sample.update(x)
    sample.update(2 * x)
    found = sample.finish()
    assert torch.equal(found.rows, torch.cat((x.flatten(0, 1).T, 2 * x.flatten(0, 1).T), 1))
    assert torch.equal(found.low, 2 * x.flatten(0, 1).amin(0)) and torch.equal(found.with_ends().amax(1), found.high)
    few = SampleObserver(20, -1)
    few.update(x)
    assert few.finish().rows.shape == (4, 20) and torch.equal(few.finish().high, x.flatten(0, 1).amax(0))
    other = SampleObserver(20, -1)
    other.merge(few)
    assert torch.equal(other.finish().rows, few.finish().rows)
    means = ChannelMeans()
    for part in (x, 3 * x):
        means.update(part)
    torch.testing.assert_close(means.finish(), 3 * x.abs().flatten(0, 1).mean(0))
    large = RunningPercentile(0.5)
    large.most = 1000
    large.update(torch.arange(5000.0))
    assert abs(large.finish() - 2500) < 50
    assert F.relu(large.finish()) > 0


@pytest.mark.parametrize("find", [search.dobi, search.clip_search, search.step_search])
def test_candidates_tried_together_give_the_same_bounds(find, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    rows = torch.cat((torch.randn(4, 200, generator=generator).exp(), torch.full((1, 200), 3.0)))
    one_by_one = find(rows, 2)
    monkeypatch.setattr(search, "_at_once", lambda rows: 7)
    for a, b in zip(one_by_one, find(rows, 2), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
