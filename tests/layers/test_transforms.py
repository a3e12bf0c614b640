"""Transforms keep the output of every registered quantized network, merged or not, before quantization."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from basicsr.archs import build_network
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import QUANTIZED, SMALLEST, tiny_network
from torch import nn

import qmambair_basicsr  # noqa: F401  (registers the networks)
from qmambair_basicsr.artifacts.packed import PackedCheckpointError, save_packed
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.convert import freeze_parameters
from qmambair_basicsr.layers.info import network_info
from qmambair_basicsr.layers.merging import Source, inner_sources, merge
from qmambair_basicsr.layers.sites import parameter_sites
from qmambair_basicsr.layers.transforms import (
    Chain,
    LowRank,
    Offset,
    Rotation,
    Smoothing,
    TransformError,
    attach,
    places,
    transforms_of,
)
from qmambair_basicsr.lowering import LoweringError, captured_codes, frozen_copy, lower
from qmambair_basicsr.quantizers.site import KINDS

every_network = pytest.mark.parametrize("name", QUANTIZED)
FOLDABLE = (
    ("ln_1", "self_attention.in_proj"),
    ("ln_2", "conv_blk.fc1"),
    ("norm1", "wqkv"),
    ("norm1", "attn.qkv"),
    ("norm2", "mlp.fc1"),
    ("norm2", "convffn1.fc1"),
    ("norm4", "convffn2.fc1"),
)
"""LayerNorm -> the only layer that reads it, as ends of names."""


@functools.cache
def built(name, bits=32):
    """A small network in FP64 with quantizers of so many bits, and an image."""
    torch.manual_seed(0)
    described = tiny_network(name, {kind: {"type": "LSQ", "bits": bits} for kind in KINDS}, **SMALLEST)
    net = build_network(copy.deepcopy(described)).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):  # away from 1 and 0
                module.weight.add_(0.2 * torch.randn_like(module.weight))
                module.bias.add_(0.2 * torch.randn_like(module.bias))
    x = torch.rand(1, network_info(net).channels, 8, 16)
    if bits == 32:
        net, x = net.double(), x.double()
    else:
        calibrate(net, [x])
    return net, x, described


def fresh(name, bits=32):
    net, x, _ = built(name, bits)
    return copy.deepcopy(net), x


def output(net, x):
    with torch.no_grad():
        return net(x)


def orthogonal(generator, *shape):
    return torch.linalg.qr(torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64))[0]


def random_transforms(net, seed):
    """One of every kind that fits, at every place that can have one."""
    generator = torch.Generator().manual_seed(seed)

    def positive(n):
        return 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)

    chosen = {}
    for name, place in places(net).items():
        layout = place.layout
        options = [Smoothing(positive(layout.channels)), Offset(positive(layout.channels) - 1)]
        if layout.groups == 1:
            rotation = Rotation(orthogonal(generator, layout.channels))
            options += [rotation, Chain(Smoothing(positive(layout.channels)), rotation)]
        if layout.stacked:
            options += [Rotation(orthogonal(generator, layout.weight_shape[0], layout.channels))] * 2
        chosen[name] = options[int(torch.randint(len(options), (), generator=generator))]
    return chosen


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_network
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_output_stays_attached_and_merged(name, seed):
    net, x = fresh(name)
    wanted = output(net, x)
    keys = set(net.state_dict())
    before = {key: p.clone() for key, p in net.named_parameters()}
    attach(net, random_transforms(net, seed))
    assert set(transforms_of(net)) == set(places(net)) and keys < set(net.state_dict())
    same(output(net, x), wanted)
    known = inner_sources(net)
    into = {place: source for place, source in known.items() if not transforms_of(net)[place].leaves}
    online = merge(net, into)
    assert set(online) == {p for p, t in transforms_of(net).items() if t.changes_input} and not set(into) & set(online)
    same(output(net, x), wanted)
    changed = [key for key, p in before.items() if not torch.equal(net.get_parameter(key), p)]
    assert changed and not any("transform" in key for key in changed)


@every_network
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_inputs_fold_into_what_computes_them(name, seed):
    """Every transform is gone, and the network has the parameters of one that never had any."""
    net, x = fresh(name)
    wanted, keys = output(net, x), set(net.state_dict())
    generator = torch.Generator().manual_seed(seed)
    known, into, chosen = places(net), dict(inner_sources(net)), {}
    for place in into:
        layout = known[place].layout
        leading = layout.weight_shape[:1] if layout.stacked else ()
        chosen[place] = Rotation(orthogonal(generator, *leading, layout.channels))
    modules = dict(net.named_modules())
    for norm, reader in FOLDABLE:
        for place in known:
            stem = place.removesuffix(f".{reader}")
            if stem != place and f"{stem}.{norm}" in modules:
                into[place] = f"{stem}.{norm}"
                values = 0.5 + torch.rand(known[place].layout.channels, generator=generator, dtype=torch.float64)
                has_bias = getattr(known[place].owner, "bias", None) is not None
                chosen[place] = Chain(Smoothing(values), Offset(values)) if has_bias else Smoothing(values)
    assert into or not any(isinstance(m, nn.LayerNorm) for m in modules.values()), "EDSR alone has nothing to fold into"
    attach(net, chosen)
    same(output(net, x), wanted)
    assert merge(net, into) == [] and set(net.state_dict()) == keys and not transforms_of(net)
    same(output(net, x), wanted)


@every_network
def test_integer_network_and_packed_file(name, tmp_path):
    net, x = fresh(name, 4)
    generator = torch.Generator().manual_seed(0)
    attach(
        net,
        {
            place: Rotation(orthogonal(generator, p.layout.channels).float())
            for place, p in places(net).items()
            if p.layout.groups == 1
        },
    )
    calibrate(net, [x])
    merged = copy.deepcopy(net)
    assert set(merge(merged)) == set(transforms_of(net))
    same(output(merged, x), output(net, x))
    exact, integer = frozen_copy(net, torch.float64), lower(net, torch.float64)
    wanted, got = captured_codes(exact, x.double()), captured_codes(integer, x.double())
    assert wanted.keys() == got.keys()
    assert all((a == b).all() for key in wanted for a, b in zip(wanted[key], got[key], strict=True))
    torch.testing.assert_close(output(integer, x.double()), output(exact, x.double()), rtol=1e-10, atol=1e-10)
    pytest.importorskip("safetensors", reason="extra: export")
    with pytest.raises(PackedCheckpointError, match=r"its input is transformed \(Rotation\)"):
        save_packed(net, built(name, 4)[2], tmp_path / "net.safetensors")


def linear_network():
    """ToLinear: LayerNorm, grouped convolution, linears; quantized to 4 bits, in FP64."""
    from qmambair_basicsr.layers import NetworkInfo, prepare
    from qmambair_basicsr.quantizers import QuantSpec

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.first, self.second = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
            self.conv, self.grouped = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1, groups=3)

        def forward(self, x):
            y = self.second(self.first(self.norm(x))).permute(0, 3, 1, 2)
            return self.grouped(self.conv(y))

    torch.manual_seed(0)
    net = Layers()
    spec = QuantSpec.from_dict({"weight": {"type": "LSQ", "bits": 4}, "act": {"type": "LSQ", "bits": 4}})
    prepare(net, spec, NetworkInfo())
    x = torch.randn(2, 3, 5, 6)
    calibrate(net, [x])
    return net.double().eval(), x.double()


def test_kept_weight_follows_the_transform():
    net, x = linear_network()
    increment = LowRank((6, 6), 2)
    attach(net, {"first": increment, "conv": LowRank((6, 6, 3, 3), 2)})
    first = output(net, x)
    assert torch.equal(output(net, x), first)
    with torch.no_grad():
        increment.B.add_(0.3)
    second = output(net, x)
    assert not torch.equal(second, first)
    weight = net.first.weight + increment.B @ increment.A
    assert torch.equal(net.first.quantized_weight(), net.first.weight_quantizer(weight))
    assert merge(net) == [] and torch.equal(net.first.weight, weight) and not transforms_of(net)
    same(output(net, x), second)


def test_increments_train_and_smoothing_may():
    net, x = linear_network()
    attach(net, {"first": Chain(LowRank((6, 6), 2), Smoothing(torch.ones(6), learned=True))})
    net.train()(x).square().mean().backward()
    learned = [p for key, p in net.named_parameters() if "transform" in key and p.requires_grad]
    assert len(learned) == 3 and all(p.grad is not None for p in learned)
    assert net.first.transform.parts[0].B.grad.abs().sum() > 0


def test_one_transform_follows_another():
    net, x = linear_network()
    for quantizer in (m for m in net.modules() if hasattr(m, "act_quantizer")):
        quantizer.act_quantizer.forward = quantizer.weight_quantizer.forward = lambda t: t
    wanted = output(net, x)
    generator = torch.Generator().manual_seed(0)
    attach(net, {"second": Smoothing(torch.rand(6, generator=generator) + 0.5)})
    merge(net)
    attach(net, {"second": Rotation(orthogonal(generator, 6))})
    same(output(net, x), wanted)
    assert merge(net, {"second": "first"}) == []
    same(output(net, x), wanted)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ({"frist": Smoothing(torch.ones(6))}, r"unknown place of a transform 'frist' \(did you mean 'first'\?\)"),
        ({"first": Smoothing(torch.ones(5))}, r"first: Smoothing must have \(6,\) values here, not \(5,\)"),
        ({"first": Smoothing(-torch.ones(6))}, "first: the scales of Smoothing must be positive"),
        ({"first": Rotation(torch.eye(5))}, r"first: a rotation must be \(6, 6\) here, not \(5, 5\)"),
        ({"grouped": Rotation(torch.eye(6))}, "grouped: a rotation mixes channels, which 3 groups keep apart"),
        ({"first": LowRank((6, 5), 2)}, r"first: LowRank of \(6, 5\) at a weight of \(6, 6\)"),
    ],
    ids=["name", "channels", "negative", "rotation", "groups", "increment"],
)
def test_what_does_not_fit_is_refused_by_name(transforms, message):
    net, _ = linear_network()
    with pytest.raises(TransformError, match=message):
        attach(net, {"second": Smoothing(torch.ones(6))} | transforms)
    assert not transforms_of(net)
    with pytest.raises(ValueError, match="differs from the identity"):
        Rotation(2 * torch.eye(6))


@pytest.mark.parametrize(
    ("place", "transform", "source", "message"),
    [
        ("first", Rotation(torch.eye(6)), "norm", "a LayerNorm and groups of a convolution keep channels apart"),
        ("second", Offset(torch.ones(6)), "first", "an offset needs a bias in both"),
        ("conv", Offset(torch.ones(6)), "first", "padding surrounds the map"),
        ("first", Smoothing(torch.ones(6)), "nrom", "unknown module 'nrom'"),
        ("first", Smoothing(torch.ones(6)), "norm.weight", "unknown module"),
        ("first", Smoothing(torch.ones(6)), "first.act_quantizer", "is a LSQ"),
        ("first", Smoothing(torch.ones(6)), Source("norm", slice(0, 4)), "it has 4 output channels, not 6"),
    ],
    ids=["mixed", "bias", "padding", "name", "parameter", "kind", "rows"],
)
def test_what_cannot_be_merged_is_refused_and_nothing_changes(place, transform, source, message):
    net, _ = linear_network()
    attach(net, {place: transform, "grouped": Smoothing(torch.full((6,), 2.0))})
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(TransformError, match=message):
        merge(net, {place: source})
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert set(transforms_of(net)) == {place, "grouped"}
    with pytest.raises(TransformError, match="unknown place with a transform 'second2'"):
        merge(net, {"second2": "first"})


def test_frozen_weights_and_integer_networks_refuse_by_name():
    net, x = linear_network()
    attach(net, {"second": Offset(torch.full((6,), 0.1))})
    with pytest.raises(LoweringError, match="second: Offset is subtracted behind the quantizer"):
        lower(net)
    wanted = output(net, x)
    codes = [p.tensor() for p in parameter_sites(net)]
    attach(net, {"first": Smoothing(torch.full((6,), 2.0))})
    assert torch.equal(parameter_sites(net)[0].tensor(), 2 * codes[0])
    freeze_parameters(net)
    assert output(net, x).shape == wanted.shape
    with pytest.raises(TransformError, match="first: its weight is frozen to codes"):
        merge(net)
