"""The integer network is the fake-quantized one: code for code in FP64, for every registered architecture."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from tiny_networks import QUANTIZED, SMALLEST, kinds_of, tiny_network, tiny_options
from torch import nn

import qmambair_basicsr  # noqa: F401  (registers the networks)
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.convert import freeze_dls, frozen
from qmambair_basicsr.layers.info import NetworkInfo, network_info
from qmambair_basicsr.layers.prepare import prepare
from qmambair_basicsr.layers.sites import network_sites, parameter_sites, quantizers_of
from qmambair_basicsr.lowering import LoweringError, captured_codes, frozen_copy, lower
from qmambair_basicsr.lowering.layers import FloatWeight, IntegerConv2d, IntegerLinear, IntegerWeight, Product
from qmambair_basicsr.lowering.weights import GroupedWeight
from qmambair_basicsr.quantizers import QuantSpec, UncalibratedError

every_network = pytest.mark.parametrize("name", QUANTIZED)
NO_SEARCH = {"search": "none"}


def quant(bits):
    """The released method: RFA, LSQOffset and DLS."""
    return {
        "weight": {"type": "RFA", "bits": bits},
        "act": {"type": "LSQOffset", "bits": bits, "search": "none"},
        "scan": {"type": "DLS", "bits": bits, "init": NO_SEARCH},
        "attention": {"type": "LSQOffset", "bits": bits, "search": "none"},
        "routing": {"type": "LSQ", "bits": 2 * bits},
    }


DYNAMIC = {
    kind: {"type": "LSQ", "bits": 4, "granularity": "channel"}
    if kind == "weight"
    else {"type": "DLS", "bits": 4, "init": NO_SEARCH}
    for kind in ("weight", "act", "scan", "attention", "routing")
}
"""Every grid of an activation follows the tensor; weights have a step per channel."""


def image(net, batch=1, height=8, width=16):
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(batch, network_info(net).channels, height, width, generator=generator)
    return x * torch.linspace(0.3, 1, batch).view(-1, 1, 1, 1)


def network(name, settings):
    """A small calibrated network whose learned offsets are not 0, and with images of two brightnesses."""
    torch.manual_seed(0)
    net = build_network(tiny_network(name, settings, **SMALLEST)).eval()
    calibrate(net, [image(net, 2)])
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.endswith("quantizer.offset"):
                parameter.add_(0.03)
    return net


def assert_same(net, x):
    """Every code of every call, and the outputs."""
    exact, integer = frozen_copy(net, torch.float64), lower(net, torch.float64)
    x = x.double()
    wanted, got = captured_codes(exact, x), captured_codes(integer, x)
    assert wanted.keys() == got.keys() and len(wanted) >= 4
    for name, calls in wanted.items():
        assert len(calls) == len(got[name])
        for a, b in zip(calls, got[name], strict=True):
            np.testing.assert_array_equal(b, a, err_msg=name)
    with torch.no_grad():
        torch.testing.assert_close(integer(x), exact(x), rtol=1e-10, atol=1e-10)
    return integer


@every_network
@pytest.mark.parametrize("bits", [4, 2])
def test_codes_are_those_of_the_network(name, bits):
    net = network(name, quant(bits))
    x = image(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert_same(net, x)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "the network was changed"
    following = [p.name for p in network_sites(net) if p.quantizer.dynamic and p.site.parameter is None]
    assert freeze_dls(net, [x]) == following
    integer = assert_same(net, x)
    assert not quantizers_of(integer)
    with torch.no_grad():  # in FP32 what is left is rounding
        error = (lower(net)(x) - net(x)).square().mean()
    assert -10 * torch.log10(error + 1e-20) > 50


@every_network
def test_grids_that_follow_each_image(name):
    net = network(name, DYNAMIC)
    assert_same(net, image(net, 2))


@every_network
def test_offsets_for_each_channel(name):
    settings = {"preset": "plus", "bits": 2, "act": quant(2)["act"] | {"offsets": "channel"}, "scan": quant(2)["scan"]}
    kinds = kinds_of(name, tiny_options(name, **SMALLEST))
    settings = {key: value for key, value in settings.items() if key in (*kinds, "preset", "bits")}
    torch.manual_seed(0)
    net = build_network({"type": name, **tiny_options(name, **SMALLEST), "quant": settings}).eval()
    calibrate(net, [image(net, 2)])
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.endswith("quantizer.offset") or key.endswith("_input.offset"):
                parameter.add_(0.05 * torch.randn(parameter.shape))
    apart = [p.quantizer for p in network_sites(net) if p.site.kind == "act" and hasattr(p.quantizer, "own_offsets")]
    assert len(apart) > 2 and all(q.offset.unique().numel() == q.offset.numel() == q.site.channels for q in apart)
    assert_same(net, image(net))


GROUPS = {
    "weights": {"weight": {"type": "SEQ", "bits": 2, "granularity": "group16"}},
    "inputs": {"act": quant(4)["act"] | {"granularity": "group16"}},
    "both": {
        "weight": {"type": "RFA", "bits": 2, "granularity": "group16"},
        "act": quant(4)["act"] | {"granularity": "group16", "offsets": "channel"},
    },
    "following": {
        "weight": {"type": "SEQ", "bits": 2, "granularity": "group16"},
        "act": {"type": "DLS", "bits": 4, "init": NO_SEARCH},
    },
}


@every_network
@pytest.mark.parametrize("which", GROUPS)
def test_steps_for_groups_of_channels(name, which):
    """Integer sums for each group: none of the layers falls back to floating point."""
    net = network(name, quant(4) | GROUPS[which])
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.endswith("quantizer.offset") or key.endswith("_input.offset"):
                parameter.add_(0.05 * torch.randn(parameter.shape))
    integer = assert_same(net, image(net, 2))
    assert not any(isinstance(m, FloatWeight) for m in integer.modules())
    grouped = [m for m in integer.modules() if isinstance(m, GroupedWeight)]
    cut = any(q.cut is not None and q.cut.count > 1 for q in quantizers_of(net).values())  # not the 8 channels of EDSR
    assert cut == any(len(m.cells) > 1 for m in grouped) and cut == (name != "QEDSR")
    assert all(m.codes.dtype == torch.int8 for m in integer.modules() if isinstance(m, IntegerWeight))


@pytest.mark.parametrize("kind", ["weight", "act"])
def test_groups_of_channels_in_one_convolution_of_groups(kind):
    """Steps along the channels of a convolution's own groups."""
    settings = {"weight": {"type": "LSQ", "bits": 3}, "act": {"type": "LSQOffset", "bits": 3}}
    settings[kind]["granularity"] = "group16"
    spec = QuantSpec.from_dict(settings)
    x = torch.randn(2, 64, 6, 5) * torch.logspace(-1, 1, 64).view(1, -1, 1, 1)
    for groups in (1, 2, 64):
        layer = nn.Conv2d(64, 128, 3, padding=1, groups=groups)
        net = prepare(nn.Sequential(layer), spec, NetworkInfo(full_precision=()))
        calibrate(net.eval(), [x])
        with torch.no_grad():
            wanted, got = (make(net, torch.float64)(x.double()) for make in (frozen_copy, lower))
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@every_network
def test_parameters_are_integers(name):
    net = network(name, quant(2))
    integer = lower(net)
    sites = {site.parameter: site for site in parameter_sites(net)}
    layers = 0
    for path, module in integer.named_modules():
        if isinstance(module, (IntegerConv2d, IntegerLinear)) and f"{path}.weight" in sites:
            codes = frozen(sites[f"{path}.weight"]).codes
            groups = getattr(module, "groups", 1)
            stored = module.weight.codes.unflatten(0, (groups, -1))[:, : codes.shape[0] // groups].flatten(0, 1)
            assert stored.dtype == torch.int8 and torch.equal(stored, codes)
            layers += 1
    weights = [m for m in integer.modules() if isinstance(m, IntegerWeight)]
    kinds = {placed.site.kind for placed in network_sites(net)}
    assert layers > 3 and (len(weights) > layers) == ("scan" in kinds), "the raw projections of scans are integers too"
    assert any(isinstance(m, Product) for m in integer.modules()) == bool(kinds & {"attention"})
    assert all(t.dtype in (torch.float32, torch.int8, torch.int64) for t in integer.buffers())


def test_neither_onnx_nor_its_tools_are_needed(monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    net = network(QUANTIZED[0], quant(4))
    assert_same(net, image(net))


def mixed(weight=4, act=4, **overrides):
    settings = quant(4)
    for kind, bits in (("weight", weight), ("act", act)):
        settings[kind] = settings[kind] if bits == 4 else {"type": "LSQ", "bits": 32}
    return settings | ({"overrides": overrides} if overrides else {})


@pytest.mark.parametrize(
    "settings",
    [
        mixed(weight=32),
        mixed(act=32),
        mixed(**{"*.x_proj": {"weight": {"type": "LSQ", "bits": 32}}}),
        mixed(**{"*.dt_projs": {"act": {"type": "DLS", "bits": 4}}}),
        mixed(**{"*.u": {"scan": {"type": "LSQ", "bits": 32}}, "*.A": {"scan": {"type": "LSQ", "bits": 32}}}),
        mixed(**{"*.delta": {"scan": {"type": "LSQ", "bits": 4, "granularity": "channel"}}}),
        mixed(**{"*.in_proj": {"act": {"type": "QuantSR", "bits": 4}}}),
        mixed(**{"*_proj*": {"act": {"type": "LSQ", "bits": 4, "granularity": "channel"}}}),
        mixed(**{"*conv*": {"act": {"type": "MinMax", "bits": 4, "granularity": "channel"}}}),
        mixed(**{"*.conv2d": {"act": {"type": "MinMax", "bits": 8}, "weight": {"type": "LSQ", "bits": 8}}}),
    ],
)
def test_parts_in_full_precision_and_other_quantizers(settings):
    torch.manual_seed(0)
    options = {"embed_dim": 30, "depths": [1], "d_state": 2, "mlp_ratio": 1.0, "upscale": 2}
    settings = {key: settings[key] for key in ("weight", "act", "scan", "overrides") if key in settings}
    net = build_network({"type": "QMambaIR", "upsampler": "pixelshuffledirect", **options, "quant": settings}).eval()
    calibrate(net, [image(net)])
    assert_same(net, image(net))


@pytest.mark.parametrize(
    ("pattern", "settings", "message"),
    [
        ("*.u", {"scan": {"type": "DLS", "bits": 4, "mode": "official"}}, r"self_attention\.u.*DLS \(mode: official\)"),
        ("*.in_proj", {"act": {"type": "N2UQ", "bits": 4}}, r"self_attention\.in_proj.*N2UQ has neither"),
        ("*.in_proj", {"act": {"type": "RFA", "bits": 4}}, r"self_attention\.in_proj.*RFA has neither"),
        ("*.in_proj", {"weight": {"type": "DLS", "bits": 4, "mode": "official"}}, "in_proj.*clamped once more"),
        ("*.x_proj", {"weight": {"type": "DLS", "bits": 4, "mode": "official"}}, "x_proj.*clamped once more"),
    ],
)
def test_what_has_no_integer_form_is_named(pattern, settings, message):
    torch.manual_seed(0)
    options = {"embed_dim": 30, "depths": [1], "d_state": 2, "mlp_ratio": 1.0, "upscale": 2}
    base = {kind: quant(4)[kind] for kind in ("weight", "act", "scan")}
    settings = base | {"overrides": {pattern: settings}}
    net = build_network({"type": "QMambaIR", "upsampler": "pixelshuffledirect", **options, "quant": settings}).eval()
    calibrate(net, [image(net)])
    with pytest.raises(LoweringError, match=message):
        lower(net)
    if pattern == "*.u":  # a constant grid has a form whatever it was taken from
        freeze_dls(net, [image(net)])
        assert_same(net, image(net))


def test_networks_that_cannot_be_lowered_yet():
    with pytest.raises(ValueError, match="is not quantized"):
        lower(nn.Sequential(nn.Conv2d(3, 3, 1)))
    options = {"embed_dim": 30, "depths": [1], "d_state": 2, "upscale": 2, "upsampler": "pixelshuffledirect"}
    settings = {kind: quant(4)[kind] for kind in ("weight", "act", "scan")}
    with pytest.raises(UncalibratedError, match="never calibrated"):
        lower(build_network({"type": "QMambaIR", **options, "quant": settings}))
