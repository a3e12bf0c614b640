"""The site table, overrides and policies of ``prepare``."""

from __future__ import annotations

import re

import pytest
import torch
from basicsr.archs import build_network
from torch import nn

from qmambair_basicsr.archs.ss2d import SS2D
from qmambair_basicsr.layers import NetworkInfo, QuantConv2d, QuantLinear, prepare
from qmambair_basicsr.layers.sites import quantizers_of
from qmambair_basicsr.quantizers import QuantSpec, Site, SpecError, build_quantizer

SMALL = {"embed_dim": 32, "d_state": 3, "mlp_ratio": 1.25, "drop_path_rate": 0.0}
NETS = {
    "light": {**SMALL, "depths": [2, 1], "upscale": 2, "upsampler": "pixelshuffledirect"},
    "classic": {**SMALL, "depths": [1, 1], "upscale": 4, "upsampler": "pixelshuffle"},
    "3conv": {**SMALL, "depths": [1, 1], "upscale": 3, "upsampler": "pixelshuffle", "resi_connection": "3conv"},
    "dn": {**SMALL, "depths": [1, 2], "upscale": 1},
    "car": {**SMALL, "depths": [1], "upscale": 1, "in_chans": 1},
}
QUANT = {
    "weight": {"type": "LSQ", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 3},
    "scan": {"type": "MinMax", "bits": 2},
}
SCAN_INPUTS = {"u", "delta", "A", "B", "C", "D", "dt_bias"}
PROJECTIONS = {"x_proj_weight", "x_proj_input", "dt_projs_weight", "dt_projs_input"}
# methods, section 2.1: layers of the body that are quantized
BODY = re.compile(
    r"layers\.\d+\.residual_group\.blocks\.\d+\.(self_attention\.(in_proj|conv2d|out_proj)|conv_blk\.cab\.\d+)"
    r"|layers\.\d+\.conv(\.\d+)?"
)


def kind(quantizer):
    return type(quantizer).__name__, quantizer.bits


@pytest.mark.parametrize("name", NETS)
def test_every_site_and_nothing_else(name):
    full = build_network({"type": "MambaIR", **NETS[name]})
    net = build_network({"type": "QMambaIR", **NETS[name], "quant": QUANT})
    quantized = set()
    for path, module in full.named_modules():
        twin = net.get_submodule(path)
        if isinstance(module, nn.Linear | nn.Conv2d) and BODY.fullmatch(path):
            assert type(twin) is (QuantLinear if isinstance(module, nn.Linear) else QuantConv2d), path
            quantized |= {f"{path}.weight_quantizer", f"{path}.act_quantizer"}
            assert kind(twin.weight_quantizer) == ("LSQ", 4)
            dls = path.endswith("out_proj")
            assert kind(twin.act_quantizer) == (("MinMax", 3) if dls else ("LSQOffset", 3))
        elif isinstance(module, SS2D):
            assert set(twin.quantizers) == SCAN_INPUTS | PROJECTIONS
            quantized |= {f"{path}.quantizers.{site}" for site in twin.quantizers}
            assert all(kind(twin.quantizers[site]) == ("MinMax", 2) for site in SCAN_INPUTS)
            assert all(kind(twin.quantizers[site]) == ("LSQ", 4) for site in PROJECTIONS if "weight" in site)
            assert all(kind(twin.quantizers[site]) == ("LSQOffset", 3) for site in PROJECTIONS if "input" in site)
            assert twin.quantizers["u"].copies == twin.quantizers["x_proj_input"].copies == 4
        else:
            assert type(twin) is type(module) or path == "", path
    assert set(quantizers_of(net)) == quantized
    own = {key for key in net.state_dict() if not key.startswith(tuple(f"{q}." for q in quantized))}
    assert own == set(full.state_dict())


def test_shared_parameters_keep_their_identity():
    net = build_network({"type": "MambaIR", **NETS["light"]})
    before = {name: id(p) for name, p in net.named_parameters()}
    prepare(net, QuantSpec.from_dict(QUANT))
    after = {name: id(p) for name, p in net.named_parameters()}
    assert before.items() <= after.items()


@pytest.mark.parametrize("name", NETS)
def test_32_bits_equal_full_precision(name):
    full = build_network({"type": "MambaIR", **NETS[name]}).eval()
    quant = {site: {"type": QUANT[site]["type"], "bits": 32} for site in QUANT}
    net = build_network({"type": "QMambaIR", **NETS[name], "quant": quant}).eval()
    assert net.state_dict().keys() == full.state_dict().keys()
    net.load_state_dict(full.state_dict())
    x = torch.rand(1, NETS[name].get("in_chans", 3), 5, 6)
    assert torch.equal(net(x), full(x))


def act_types(net):
    return {
        path: kind(module.act_quantizer)
        for path, module in net.named_modules()
        if isinstance(module, QuantLinear | QuantConv2d)
    }


def test_paper_policy_uses_the_scan_quantizer_everywhere():
    net = build_network({"type": "QMambaIR", **NETS["light"], "quant": {**QUANT, "act_policy": "paper"}})
    assert set(act_types(net).values()) == {("MinMax", 3)}
    scan = net.layers[0].residual_group.blocks[0].self_attention.quantizers
    assert kind(scan["x_proj_input"]) == kind(scan["dt_projs_input"]) == ("MinMax", 3)


def test_paper_policy_needs_a_scan_quantizer():
    quant = {"weight": QUANT["weight"], "act": QUANT["act"], "act_policy": "paper"}
    with pytest.raises(SpecError, match=r"act_policy: 'paper'.*quant\.scan is not given"):
        build_network({"type": "QMambaIR", **NETS["light"], "quant": quant})


def test_overrides_change_what_they_match():
    overrides = {
        "*.out_proj": {"act": {"type": "LSQ", "bits": 8}},
        "layers.1.*.in_proj": {"weight": {"type": "LSQ", "bits": 8}},
        "*.self_attention": {"scan": {"type": "LSQ", "bits": 8}, "act": {"type": "LSQ", "bits": 8}},
        "*.self_attention.delta": {"scan": {"type": "MinMax", "bits": 32}},
    }
    for policy in ("code", "paper"):
        net = build_network(
            {"type": "QMambaIR", **NETS["light"], "quant": {**QUANT, "act_policy": policy, "overrides": overrides}}
        )
        first, other = (net.layers[i].residual_group.blocks[0].self_attention for i in (0, 1))
        assert kind(first.out_proj.act_quantizer) == ("LSQ", 8)
        assert kind(first.in_proj.weight_quantizer) == ("LSQ", 4)
        assert kind(other.in_proj.weight_quantizer) == ("LSQ", 8)
        assert kind(first.quantizers["u"]) == kind(first.quantizers["x_proj_input"]) == ("LSQ", 8)
        assert kind(first.quantizers["delta"]) == ("Identity", 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"*.out_prj": {"act": {"type": "LSQ", "bits": 2}}}, r"overrides\['\*\.out_prj'\]\.act: no .*\*\.out_proj"),
        (
            {"conv_first": {"weight": {"type": "LSQ", "bits": 8}}},
            r"overrides\['conv_first'\]\.weight: no quantized site",
        ),
        ({"*.in_proj": {"scan": {"type": "LSQ", "bits": 8}}}, r"overrides\['\*\.in_proj'\]\.scan: no quantized site"),
    ],
)
def test_override_that_matches_nothing_is_refused(overrides, message):
    with pytest.raises(SpecError, match=message):
        build_network({"type": "QMambaIR", **NETS["light"], "quant": {**QUANT, "overrides": overrides}})


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        ({"wieght": {"type": "LSQ", "bits": 2}}, "wieght"),
        ({"weight": {"type": "LSK", "bits": 2}}, "LSK"),
        ({"weight": {"type": "LSQ", "bits": 0}}, "bits"),
    ],
)
def test_wrong_quant_blocks_are_named(quant, message):
    with pytest.raises(SpecError, match=message):
        build_network({"type": "QMambaIR", **NETS["light"], "quant": quant})


def test_unknown_constructor_option_is_named():
    with pytest.raises(ValueError, match=r"unknown option 'upscal'.*did you mean 'upscale'.*quant"):
        build_network({"type": "QMambaIR", "quant": {}, "upscal": 2})


def test_other_networks_by_their_info():
    edsr = build_network({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2})
    tail = ("conv_first", "conv_after_body", "upsample.*", "conv_last")
    spec = QuantSpec.from_dict({kind: QUANT[kind] for kind in ("weight", "act")})
    prepare(edsr, spec, NetworkInfo(full_precision=tail))
    assert set(act_types(edsr)) == {f"body.{i}.conv{j}" for i in (0, 1) for j in (1, 2)}
    assert edsr.train()(torch.rand(1, 3, 6, 6)).isfinite().all()


def test_network_of_which_nothing_is_known_is_refused():
    with pytest.raises(ValueError, match=r"nothing is known about Sequential.*network_info\.register"):
        prepare(nn.Sequential(nn.Linear(2, 2)), QuantSpec.from_dict(QUANT))
    with pytest.raises(ValueError, match="no layer of Sequential can be quantized"):
        prepare(nn.Sequential(nn.Linear(2, 2)), QuantSpec.from_dict(QUANT), NetworkInfo(full_precision=("*",)))


def test_prepared_twice_is_refused():
    net = build_network({"type": "QMambaIR", **NETS["light"], "quant": QUANT})
    with pytest.raises(ValueError, match="QMambaIR is quantized already"):
        prepare(net, QuantSpec.from_dict(QUANT))


def test_scan_input_quantized_once_equals_four_stacked_copies():
    """The release quantizes four permuted copies of u together; here u is quantized once with copies=4."""
    spec = QuantSpec.from_dict({"scan": {"type": "LSQ", "bits": 4}}).scan
    once = build_quantizer(spec, Site(copies=4)).train()
    stacked = build_quantizer(spec, Site()).train()
    x = torch.randn(2, 3, 5, 7)  # (B, H, W, D)
    weights = torch.randn(4, 2, 15, 7)
    order = [torch.arange(15).view(3, 5).flatten(), torch.arange(15).view(3, 5).t().flatten()]
    order += [o.flip(0) for o in order]
    copies = torch.stack([x.flatten(1, 2)[:, o] for o in order])  # (4, B, L, D)
    loss_stacked = (stacked(copies) * weights).sum()
    y = once(x).flatten(1, 2)
    loss_once = sum((y[:, o] * w).sum() for o, w in zip(order, weights, strict=True))
    torch.testing.assert_close(loss_once, loss_stacked)
    loss_once.backward()
    loss_stacked.backward()
    for a, b in zip(once.parameters(), stacked.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
