"""Transforms that a ``quant:`` block names: rotations and increments of every network, in checkpoints, files and integers."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from tiny_networks import QUANTIZED, SMALLEST, tiny_network, tiny_options
from torch import nn

import qmambair_basicsr  # noqa: F401  (registers the networks)
from qmambair_basicsr.artifacts.levels import count_levels
from qmambair_basicsr.artifacts.packed import load_packed, save_packed
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import CheckpointMismatchError, load_fp_state, load_state
from qmambair_basicsr.layers import declared
from qmambair_basicsr.layers.declared import Hadamard, block_order, ordinary_state, rotations_in
from qmambair_basicsr.layers.hadamard import hadamard
from qmambair_basicsr.layers.info import full_precision_twin, network_info
from qmambair_basicsr.layers.quant_layers import QuantConv2d, QuantLinear
from qmambair_basicsr.layers.transforms import LowRank, TransformError, attach, places, transforms_of
from qmambair_basicsr.lowering import captured_codes, frozen_copy, lower
from qmambair_basicsr.quantizers import Identity, QuantSpec, Site, SpecError

every_network = pytest.mark.parametrize("name", QUANTIZED)
PLAIN = {
    "weight": {"type": "SEQ", "bits": 2, "granularity": "channel"},
    "act": {"type": "LSQOffset", "bits": 4, "search": "none"},
    "scan": {"type": "LSQOffset", "bits": 4, "search": "none"},
}
BOTH = {"Hadamard": {"block": 8}, "LowRank": {"rank": 2}}


def block(name, transforms=BOTH):
    described = tiny_network(name, PLAIN, **SMALLEST)
    described["quant"] |= {"transforms": copy.deepcopy(transforms)} if transforms else {}
    return described


def image(net, height=8, width=16):
    return torch.rand(1, network_info(net).channels, height, width, generator=torch.Generator().manual_seed(7))


def trained(name, transforms=BOTH):
    """A calibrated network whose increments are not 0."""
    torch.manual_seed(0)
    net = build_network(block(name, transforms)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, LowRank):
                module.B.copy_(0.02 * torch.randn(module.B.shape, generator=generator))
    calibrate(net, [image(net)])
    return net


def output(net, x):
    with torch.no_grad():
        return net(x)


@pytest.mark.parametrize("order", [20, 24, 48, 60, 72, 96, 120, 144, 180, 360])
def test_rotations_are_exact(order):
    matrix = hadamard(order)
    assert set(matrix.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))
    assert block_order(order, 0) == order
    assert Hadamard(order).matrix.shape == (order, order)


def test_blocks_divide_the_channels():
    assert [block_order(n, 32) for n in (60, 48, 180, 64, 174, 10, 3)] == [20, 24, 20, 32, 2, 2, 1]
    assert [block_order(n, 0) for n in (60, 174, 10)] == [60, 2, 2]
    with torch.device("meta"):  # as a packed file is looked at
        assert block_order(28, 0) == 28 and not hadamard(28).is_meta
    with pytest.raises(ValueError, match="no matrix of order 10"):
        Hadamard(10)


@pytest.mark.parametrize("order", [4, 12])
def test_a_rotation_leaves_products_as_they_are(order):
    quantizers = {"weight_quantizer": Identity(32, Site.of_weight()), "act_quantizer": Identity(32)}
    linear = QuantLinear.from_float(nn.Linear(12, 5), **quantizers)
    conv = QuantConv2d.from_float(nn.Conv2d(12, 6, 3, padding=1), **copy.deepcopy(quantizers))
    net = nn.Sequential(conv, linear).double()
    map_, rows = torch.randn(2, 12, 5, 7, dtype=torch.float64), torch.randn(3, 12, dtype=torch.float64)
    wanted = conv(map_), linear(rows)
    attach(net, {"0": Hadamard(order), "1": Hadamard(order)})
    net.double()
    for got, want in zip((conv(map_), linear(rows)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)  # the matrix is rounded to float32
    turned = net[1].transform.enter(rows)
    torch.testing.assert_close(turned.norm(dim=1), rows.norm(dim=1), rtol=1e-6, atol=0)
    dense = torch.block_diag(*[hadamard(order) / math.sqrt(order)] * (12 // order))
    torch.testing.assert_close(turned, rows @ dense.T, rtol=1e-6, atol=1e-6)
    grouped = QuantConv2d.from_float(nn.Conv2d(12, 6, 3, groups=2), **copy.deepcopy(quantizers))
    with pytest.raises(TransformError, match="2 groups"):
        attach(nn.Sequential(grouped), {"0": Hadamard(order)})


@every_network
def test_every_place_that_can_has_them(name):
    net = build_network(block(name))
    found, known = transforms_of(net), places(net)
    kinds = {place: {type(m) for m in transform.modules()} & {Hadamard, LowRank} for place, transform in found.items()}
    for place, where in known.items():
        rotates = where.layout.groups == 1 and block_order(where.layout.channels, 8) > 1
        assert (Hadamard in kinds.get(place, ())) == rotates, place
    assert any(LowRank in kind for kind in kinds.values()) and any(Hadamard in kind for kind in kinds.values())
    some = next(place for place in known if Hadamard in kinds.get(place, ()))
    one = build_network(block(name, {"Hadamard": {"places": some}}))
    assert set(transforms_of(one)) == {some}


@every_network
def test_full_precision_and_trained_weights_load(name):
    torch.manual_seed(0)
    fp = build_network({"type": full_precision_twin(name), **tiny_options(name, **SMALLEST)})
    fresh = build_network(block(name))
    load_fp_state(fresh, fp.state_dict())
    net = trained(name)
    x = image(net)
    wanted, state = output(net, x), ordinary_state(net)
    assert not any(key.endswith((".transform.A", ".B")) for key in state)
    assert set(state) == set(build_network(block(name, {"Hadamard": {"block": 8}})).state_dict())
    for transforms in (BOTH, {"Hadamard": {"block": 8}}):
        again = build_network(block(name, transforms)).eval()
        load_state(again, state, "file")
        assert torch.equal(output(again, x), wanted)
    widths = {place.layout.channels for place in places(net).values()}
    others = [{}] + [{"Hadamard": {"block": 2}}] * any(block_order(n, 8) > 2 for n in widths)
    for transforms in others:  # another network: refused, not computed wrongly
        with pytest.raises(CheckpointMismatchError):
            load_state(build_network(block(name, transforms)), state, "file")


def test_a_saved_file_looks_at_each_increment_once(monkeypatch):
    """It did so for every key of the network: minutes for each file of MambaIRv2-light."""
    net, looked, own = trained(QUANTIZED[0]), [], declared._own
    monkeypatch.setattr(declared, "_own", lambda *given: looked.append(1) or own(*given))
    ordinary_state(net)
    assert len(looked) == sum(isinstance(module, LowRank) for module in net.modules()) > 0


@pytest.mark.parametrize("order", [math.inf, math.nan, 2.5, 8.0])
def test_an_order_that_is_no_integer_is_no_rotation(order):
    assert rotations_in({"body.0.transform.order": torch.tensor(order)}) == (set(), {})
    assert rotations_in({"body.0.transform.order": torch.tensor(8)})[1] == {
        "Hadamard": {"block": 8, "places": ["body.0"]}
    }


def test_increments_alone_leave_an_ordinary_checkpoint():
    name = QUANTIZED[0]
    net = trained(name, {"LowRank": {"rank": 2}})
    plain = build_network(block(name, {})).eval()
    load_state(plain, ordinary_state(net), "file")
    x = image(net)
    assert torch.equal(output(plain, x), output(net, x))


@every_network
def test_gradients_reach_increments(name):
    net = trained(name).train()
    net(image(net)).square().mean().backward()
    for module in net.modules():
        if isinstance(module, LowRank):
            assert module.A.grad.abs().sum() > 0 and module.B.grad.abs().sum() > 0
            return
    raise AssertionError("no increment")


@every_network
def test_integers_packed_file_and_levels(name, tmp_path):
    net = trained(name)
    x = image(net)
    exact, integer = frozen_copy(net, torch.float64), lower(net, torch.float64)
    wanted, got = captured_codes(exact, x.double()), captured_codes(integer, x.double())
    assert wanted.keys() == got.keys()
    for site, calls in wanted.items():
        for a, b in zip(calls, got[site], strict=True):
            np.testing.assert_array_equal(b, a, err_msg=site)
    save_packed(net, block(name), tmp_path / "net.safetensors")
    loaded = load_packed(tmp_path / "net.safetensors")
    assert torch.equal(output(loaded, x), output(net, x))
    torch.testing.assert_close(output(lower(loaded), x), output(lower(net), x), rtol=0, atol=0)
    levels = count_levels(net, [x])
    assert levels and all(site.values <= 2**site.bits and not site.faults for site in levels)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ({"Hadamart": {}}, r"quant\.transforms.*'Hadamart'.*Hadamard"),
        ({"Hadamard": {"blok": 3}}, r"quant\.transforms\.Hadamard.*'blok'.*block"),
        ({"Hadamard": {"block": -1}}, r"quant\.transforms\.Hadamard\.block"),
        ({"LowRank": {"rank": 1.5}}, r"quant\.transforms\.LowRank\.rank: expected an integer"),
        ({"LowRank": 8}, r"quant\.transforms\.LowRank: expected a mapping"),
        ({"Hadamard": {"places": []}}, r"quant\.transforms\.Hadamard\.places"),
        (["Hadamard"], r"quant\.transforms: expected a mapping"),
    ],
)
def test_mistakes_are_named(transforms, message):
    with pytest.raises(SpecError, match=message):
        QuantSpec.from_dict(PLAIN | {"transforms": transforms})


def test_places_that_do_not_exist_are_refused():
    with pytest.raises(SpecError, match=r"Hadamard\.places: \*\.nowhere fit no.*\*\.in_proj"):
        build_network(block("QMambaIR", {"Hadamard": {"places": "*.nowhere"}}))
    spec = QuantSpec.from_dict(PLAIN | {"transforms": {"Hadamard": {"places": ["*.a", "*.b"]}, "LowRank": {}}})
    assert QuantSpec.from_dict(spec.to_dict()) == spec
