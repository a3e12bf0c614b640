"""A network of one's own is one file, and so is a quantizer: toys dropped into the package's folders."""

from __future__ import annotations

import copy

import pytest
import torch
from basicsr.archs import build_network
from torch import nn
from toy_networks import NETWORKS, QUANT, calibrated, options, toy_networks, toys  # noqa: F401

from qmambair_basicsr import quantizers
from qmambair_basicsr.artifacts.packed import load_packed, save_packed
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import load_fp_state, write_file
from qmambair_basicsr.inference.opening import network_from
from qmambair_basicsr.layers import MatMul, NetworkInfo, prepare
from qmambair_basicsr.layers.convert import FixedGrid, freeze_dls
from qmambair_basicsr.layers.info import blocks_of, full_precision_twin, network_info
from qmambair_basicsr.layers.placement import placement
from qmambair_basicsr.layers.prepare import site_kinds
from qmambair_basicsr.layers.sites import network_sites, parameter_sites, quantizers_of
from qmambair_basicsr.layers.transforms import Rotation, TransformError, attach
from qmambair_basicsr.lowering import LoweringError, captured_codes, frozen_copy, lower
from qmambair_basicsr.ops.backend import Backend
from qmambair_basicsr.quantizers import (
    QuantizerSpec,
    QuantSpec,
    Site,
    SpecError,
    build_quantizer,
)
from qmambair_basicsr.quantizers.site import KINDS, ROLES
from qmambair_basicsr.runtime import native_network
from qmambair_basicsr.studies.complexity_count import measure


@toy_networks
def test_network_trains_and_takes_the_checkpoint_of_its_twin(name):
    full = build_network({"type": full_precision_twin(f"Q{name}")})
    assert type(full).__name__ == name and network_info(full).twin is None
    net = build_network(options(name)).train()
    assert network_info(net).twin == name
    load_fp_state(net, full.state_dict())
    x = torch.rand(2, 3, 6, 8)
    calibrate(net, [x])
    y = net(x)
    y.square().mean().backward()
    assert y.shape[-1] == 8 * network_info(net).scale and not torch.allclose(y, full(x))
    gradients = [p.grad for p in net.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert all(p.grad.abs().sum() > 0 for key, p in net.named_parameters() if key.endswith(("log_weight", "decay")))


@toy_networks
def test_sites_are_its_quantizers_and_the_placement_shows_them(name):
    kinds, expected = NETWORKS[name]
    net = build_network(options(name))
    placed = network_sites(net)
    assert [p.name for p in placed] == list(quantizers_of(net))
    assert {p.site.kind for p in placed} == set(kinds)
    rows = {row.module: row for row in placement(net)}
    first = next(iter(blocks_of(net)))
    for part, expected_row in expected.items():
        row = rows[f"{first}.{part}"]
        assert (row.weight, row.act, row.quantized) == expected_row
    ours = sum(p.numel() for q in quantizers_of(net).values() for p in q.parameters())
    assert sum(r.quantized + r.full_precision for r in rows.values()) == sum(p.numel() for p in net.parameters()) - ours


@toy_networks
def test_costs_are_counted_with_the_widths_of_the_sites(name):
    rows = {row.name: row for row in measure(options(name), 6, 8, packed=False).rows}
    if name == "ToyPlain":
        mix = rows["body.0.mixer.mix"]
        assert (mix.parameters, mix.parameter_bits) == (36, 4 * 36)
        assert [(p.macs, p.weight, p.act) for p in mix.products] == [(6 * 8 * 36, 4, 4)]
        assert [(p.weight, p.act) for p in rows["body.0.product"].products] == [(8, 8)]
    elif name == "ToyForeign":
        assert [(p.weight, p.act) for p in rows["attention.qk"].products] == [(8, 8)]
    else:
        scan = rows["body.0.scan"]
        assert (scan.parameters, scan.parameter_bits) == (24, 4 * 24)
        assert scan.macs == 6 * 8 * 2 * 6 * (4 * 2 + 1)  # 4 N + 1 for each pixel, direction and channel, without D


def test_the_one_file_says_how_its_networks_are_found_from_keys(tmp_path):
    """Of weights without options, full precision and quantized; the commands then need nothing else of them."""
    for block in ({"type": "ToyScan", "dim": 5, "states": 3, "depth": 2}, options("ToyScan")):
        net = build_network(copy.deepcopy(block)).eval()
        if "quant" in block:
            calibrate(net, [torch.rand(2, 3, 6, 8)])
        write_file({"params": net.state_dict()}, tmp_path / "net.pth")
        found = network_from(tmp_path / "net.pth")
        assert type(found) is type(net)
        x = torch.rand(1, 3, 7, 9)
        with torch.no_grad():
            torch.testing.assert_close(found(x), net(x), rtol=0, atol=0)


@toy_networks
def test_integer_runtime_runs_it(name):
    available, reason = Backend("integer", "native").is_available()
    if not available:
        pytest.skip(reason)
    net, x = calibrated(name).eval(), torch.rand(1, 3, 6, 8)
    native, integer = native_network(net), lower(net)
    with torch.no_grad():
        torch.testing.assert_close(native(x), integer(x), rtol=1e-4, atol=1e-4)


@toy_networks
def test_packed_file_and_constant_grids(name, tmp_path):
    pytest.importorskip("safetensors", reason="extra: export")
    net = calibrated(name).eval()
    x = torch.rand(1, 3, 6, 8)
    save_packed(net, options(name), tmp_path / "net.safetensors")
    loaded = load_packed(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    for before, after in zip(parameter_sites(net), parameter_sites(loaded), strict=True):
        assert before.site == after.site and torch.equal(
            before.quantizer(before.tensor()), after.quantizer.quantize(after.tensor())
        )
        torch.testing.assert_close(after.tensor(), after.quantizer.quantize(after.tensor()))  # the parameter shows it
    replaced = freeze_dls(net, [x])
    assert replaced and all(isinstance(net.get_submodule(path), FixedGrid) for path in replaced)


@toy_networks
def test_blocks_are_found_by_its_info(name):
    net = build_network({"type": name})
    expected = ["attention"] if name == "ToyForeign" else [f"body.{i}" for i in range(len(net.body))]
    assert list(blocks_of(net)) == expected


class Product(nn.Module):
    """A network with nothing but a product."""

    def __init__(self):
        super().__init__()
        self.product = MatMul("attention", ("a", "b"))

    def forward(self, x):
        return self.product(x, x.transpose(-2, -1))


LACKING = {  # name -> (how to build it, facts about it)
    "ToyPlain": (lambda: build_network({"type": "ToyPlain"}), None),
    "ToyScan": (lambda: build_network({"type": "ToyScan"}), None),
    "EDSR": (lambda: build_network({"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_block": 1}), NetworkInfo()),
    "Product": (Product, NetworkInfo()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_site_that_the_network_lacks_is_refused_by_name(kind):
    refused = []
    for name, (build, info) in LACKING.items():
        net = build()
        kinds = site_kinds(net, info)
        spec = QuantSpec.from_dict({k: {"type": "LSQ", "bits": 4} for k in {kind, *kinds}})
        if kind in kinds:
            prepare(net, spec, info)
            assert any(p.site.kind == kind for p in network_sites(net))
        else:
            with pytest.raises(SpecError, match=rf"quant\.{kind}: {name} has no such sites.*: {', '.join(kinds)}\)"):
                prepare(net, spec, info)
            assert not quantizers_of(net)
            refused.append(name)
    assert refused


def test_everything_a_network_lacks_is_named_at_once():
    quant = {k: {"type": "LSQ", "bits": 4} for k in KINDS} | {
        "overrides": {"*.mixr": {"act": {"type": "LSQ", "bits": 8}}}
    }
    with pytest.raises(SpecError) as caught:
        build_network({"type": "QToyPlain", "quant": quant})
    message = str(caught.value)
    assert all(part in message for part in ("quant.scan", "quant.routing", "'*.mixr'", "*.mixer")), message


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_quantizer_keeps_the_contract(role, granularity):
    site = Site.of_role(role, 5, -1)
    quantizer = build_quantizer(QuantizerSpec("ToyMean", 4, {"granularity": granularity}), site)
    x = torch.randn(3, 7, 5)
    quantizer.init_from(x)
    codes, scale, zero = quantizer.to_int(x)
    assert torch.equal((codes - zero) * scale, quantizer(x))
    assert codes.min() >= -8 and codes.max() <= 7 and scale.numel() == (5 if granularity == "channel" else 1)


@toy_networks
def test_quantizer_in_a_network(name):
    kinds, _ = NETWORKS[name]
    quant = {kind: {"type": "ToyMean", "bits": 4, "granularity": "channel"} for kind in kinds if kind != "attention"}
    net = build_network({"type": f"Q{name}", "quant": quant})
    calibrate(net, [torch.rand(1, 3, 6, 8)])
    net(torch.rand(1, 3, 6, 8)).square().mean().backward()
    steps = [p.grad for key, p in net.named_parameters() if key.endswith(".step")]
    assert len(steps) == sum(q.bits == 4 for q in quantizers_of(net).values()) and all(
        g.isfinite().all() for g in steps
    )


def test_an_online_transform_is_exported_and_verified(tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="extra: export")
    from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx
    from qmambair_basicsr.artifacts.verification import open_artifact

    net, x = calibrated("ToyPlain").eval(), torch.rand(1, 3, 6, 8)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    with pytest.raises(TransformError, match=r"unknown place of a transform 'body\.0\.mixer\.mix'"):  # a logarithm
        attach(net, {"body.0.mixer.mix": Rotation(rotation)})
    attach(net, {f"body.{block}.query": Rotation(rotation) for block in range(2)})
    frozen = copy.deepcopy(calibrate(net, [x]))
    freeze_dls(frozen, [x])
    export_onnx(frozen, tmp_path / "net.onnx", ExportSettings(6, 8))
    artifact = open_artifact(tmp_path / "net.onnx", net)
    equal = {check.name: check.equal for check in artifact.weights}
    assert equal["body.0.query.weight"] and False not in equal.values()
    checks = artifact.activations(x, list)
    assert checks and all(check.own_input == check.count for check in checks if check.own_input is not None)
    with torch.no_grad():
        torch.testing.assert_close(artifact.network(x), frozen(x), atol=1e-4, rtol=0)


def test_wrong_options_of_the_quantizer_are_named():
    with pytest.raises(SpecError) as caught:
        QuantSpec.from_dict({"weight": {"type": "ToyMean", "bitz": 2, "granularity": "row"}})
    assert all(part in str(caught.value) for part in ("'bitz'", "no 'bits' given for ToyMean", "'row'"))


OWN = {
    "weight": {"type": "ToyMean", "bits": 4, "granularity": "channel"},
    "act": {"type": "ToyRange", "bits": 4},
    "scan": {"type": "ToyMean", "bits": 4},
    "attention": {"type": "ToyRange", "bits": 8},
}


def quantized(name, quant):
    net = build_network({"type": f"Q{name}", "quant": {kind: quant[kind] for kind in NETWORKS[name][0]}}).eval()
    calibrate(net, [torch.rand(2, 3, 6, 8)])
    return net


@toy_networks
@pytest.mark.parametrize("quant", [QUANT, OWN], ids=["DLS", "own"])
def test_lowered_network_is_the_network(name, quant):
    net, x = quantized(name, quant), torch.rand(2, 3, 6, 8, dtype=torch.float64)
    exact, integer = frozen_copy(net, torch.float64), lower(net, torch.float64)
    wanted, got = captured_codes(exact, x), captured_codes(integer, x)
    assert wanted.keys() == got.keys() and wanted
    for place, calls in wanted.items():
        assert [call.tolist() for call in calls] == [call.tolist() for call in got[place]], place
    with torch.no_grad():
        torch.testing.assert_close(integer(x), exact(x), rtol=1e-10, atol=1e-10)


@toy_networks
def test_network_and_quantizers_export(name, tmp_path):
    pytest.importorskip("onnxruntime", reason="extra: export")
    from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx
    from qmambair_basicsr.artifacts.verification import open_artifact

    net, x = quantized(name, OWN), torch.rand(1, 3, 6, 8)
    export_onnx(net, tmp_path / "net.onnx", ExportSettings(6, 8, scan_chunk=4, precision="fp64"))
    artifact = open_artifact(tmp_path / "net.onnx", net)
    assert any(check.stored == "codes" for check in artifact.weights)
    assert all(check.equal is not False for check in artifact.weights)
    checks = artifact.activations(x, iter)
    assert checks and all(check.whole_network == check.count for check in checks)
    with torch.no_grad():
        torch.testing.assert_close(artifact.network(x), artifact.reference(x), rtol=1e-6, atol=1e-7)


def test_grids_that_follow_the_tensor_become_constants():
    net = quantized("ToyScan", OWN)
    following = [p.name for p in network_sites(net) if p.quantizer.dynamic and p.site.parameter is None]
    assert following and freeze_dls(net, [torch.rand(2, 3, 6, 8)]) == following
    assert lower(net)(torch.rand(1, 3, 6, 8)).isfinite().all()


def test_a_quantizer_without_a_form_is_refused_by_name():
    net = quantized("ToyScan", QUANT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizers.LSQOffset, "static_form", quantizers.Quantizer.static_form)
        with pytest.raises(LoweringError, match=r"body\.0\.inner.*LSQOffset has neither a constant grid"):
            lower(net)
