"""A network of one's own is one file, and so is a quantizer: toys dropped into the package's folders."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

import qmambair_basicsr
from qmambair_basicsr import archs, quantizers
from qmambair_basicsr.artifacts.packed import PackedCheckpointError, load_packed, save_packed
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import load_fp_state
from qmambair_basicsr.layers import MatMul, NetworkInfo, prepare
from qmambair_basicsr.layers.convert import FixedGrid, freeze_dls
from qmambair_basicsr.layers.info import TWINS, blocks_of, full_precision_twin, network_info
from qmambair_basicsr.layers.placement import placement
from qmambair_basicsr.layers.prepare import site_kinds
from qmambair_basicsr.layers.sites import network_sites, parameter_sites, quantizers_of
from qmambair_basicsr.layers.transforms import Rotation, TransformError, attach
from qmambair_basicsr.lowering import LoweringError, captured_codes, frozen_copy, lower
from qmambair_basicsr.quantizers import (
    QUANTIZER_REGISTRY,
    BinaryOrders,
    QuantizerSpec,
    QuantSpec,
    Site,
    SpecError,
    build_quantizer,
)
from qmambair_basicsr.quantizers.site import KINDS, ROLES
from qmambair_basicsr.studies.complexity_count import measure

TOYS = Path(__file__).parent / "toys"
QUANT = {
    "weight": {"type": "RFA", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
    "attention": {"type": "DLS", "bits": 8},
}
NETWORKS = {
    "ToyPlain": (("weight", "act", "attention"), {"mixer.mix": ("RFA", "LSQOffset", 36), "product.q": ("-", "DLS", 0)}),
    "ToyForeign": (
        ("weight", "act", "attention"),
        {"query": ("RFA", "LSQOffset", 36), "qk.q": ("-", "DLS", 0), "av.map": ("-", "DLS", 0)},
    ),
    "ToyScan": (("weight", "act", "scan"), {"decay": ("DLS", "-", 24), "outer": ("RFA", "DLS", 36)}),
}
toy_networks = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module", autouse=True)
def toys():
    """The files in ``toys/`` as if they lay in the package's folders, for this module only."""
    known = dict(ARCH_REGISTRY._obj_map), dict(TWINS), dict(QUANTIZER_REGISTRY)
    with pytest.MonkeyPatch.context() as patch:
        for package in (archs, quantizers):
            folder = TOYS / package.__name__.rpartition(".")[-1]
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        qmambair_basicsr._register_all()
        quantizers.load_quantizers()
        yield
    for registry, before in zip((ARCH_REGISTRY._obj_map, TWINS, QUANTIZER_REGISTRY), known, strict=True):
        for added in registry.keys() - before:
            del registry[added]
    for module in [m for m in sys.modules if m.startswith(f"{qmambair_basicsr.__name__}.") and ".toy_" in m]:
        del sys.modules[module]


def options(name):
    kinds, _ = NETWORKS[name]
    return {"type": f"Q{name}", "quant": {kind: QUANT[kind] for kind in kinds}}


def calibrated(name):
    net = build_network(options(name))
    return calibrate(net, [torch.rand(2, 3, 6, 8)])


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


BINARY = {"type": "ToyBinary", "bits": 2}


@pytest.fixture(scope="module")
def binary(toys):
    """A network all of whose weights and scan parameters are sums of two binary orders, and its options."""
    quant = {"weight": BINARY, "act": QUANT["act"], "scan": QUANT["scan"]}
    quant["overrides"] = {"*.decay": {"scan": BINARY}}
    described = {"type": "QToyScan", "quant": quant}
    return calibrate(build_network(described), [torch.rand(2, 3, 6, 8)]).eval(), described


def test_codes_that_are_not_affine_are_packed(binary, tmp_path):
    pytest.importorskip("safetensors", reason="extra: export")
    net, described = binary
    x = torch.rand(1, 3, 6, 8)
    path = tmp_path / "net.safetensors"
    report = save_packed(net, described, path)
    loaded = load_packed(path)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    sites = parameter_sites(loaded)
    assert len(sites) == 3 and all(site.quantizer.kind is BinaryOrders for site in sites)
    assert report.codes == sum(-(-2 * site.tensor().numel() // 8) for site in sites)
    again = save_packed(loaded, described, tmp_path / "again.safetensors")
    assert again == report


def test_verification_compares_codes_that_are_not_affine(binary, tmp_path):
    for package in ("onnx", "onnxruntime", "safetensors"):
        pytest.importorskip(package, reason="extra: export")
    from qmambair_basicsr.artifacts.verification import open_artifact

    (net, described), path = binary, tmp_path / "net.safetensors"
    save_packed(net, described, path)
    assert [check.equal for check in open_artifact(path, net).weights] == [True, True, True]
    loaded = load_packed(path)
    with torch.no_grad():
        parameter_sites(loaded)[0].quantizer.alpha.mul_(1.01)
    save_packed(loaded, described, path)
    assert [check.equal for check in open_artifact(path, net).weights] == [False, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kinds: kinds.popitem(), "kinds names other quantizers"),
        (
            lambda kinds: kinds["body.0.inner.weight_quantizer"].update(type="AffineCodes"),
            "are no codes of BinaryOrders",
        ),
        (lambda kinds: kinds["body.0.inner.weight_quantizer"]["tables"].update(beta=[1]), "no table 'beta'"),
        (lambda kinds: kinds["body.0.inner.weight_quantizer"]["tables"].update(alpha=[-2, 20, 1]), "a table of shape"),
        (lambda kinds: kinds["body.0.inner.weight_quantizer"]["tables"].update(alpha=[20, 2, 1]), "alpha has shape"),
    ],
    ids=["missing", "type", "table", "negative", "shape"],
)
def test_codes_in_a_file_that_do_not_fit_are_refused(binary, tmp_path, change, message):
    safetensors = pytest.importorskip("safetensors", reason="extra: export")
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    save_packed(*binary, path)
    with safetensors.safe_open(str(path), framework="pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    kinds = json.loads(metadata["kinds"])
    change(kinds)
    save_file(tensors, str(path), metadata | {"kinds": json.dumps(kinds)})
    with pytest.raises(PackedCheckpointError, match=message):
        load_packed(path)


def test_bits_of_codes_that_are_not_affine_are_counted(binary):
    rows = {row.name: row for row in measure(binary[1], 6, 8, packed=False).rows}
    outer = rows["body.0.outer"]
    assert outer.parameter_bits == 2 * 36 + 32 * 6 and [(p.weight, p.act) for p in outer.products] == [(2, 4)]
    assert rows["body.0.scan"].parameter_bits == 2 * 24


def test_codes_that_are_not_affine_run_in_the_integer_network(binary):
    net, _ = binary
    x = torch.rand(1, 3, 6, 8, dtype=torch.float64)
    exact, integer = frozen_copy(net, torch.float64), lower(net, torch.float64)
    wanted, got = captured_codes(exact, x), captured_codes(integer, x)
    assert wanted.keys() == got.keys() and all(
        (a == b).all() for name in wanted for a, b in zip(wanted[name], got[name], strict=True)
    )
    with torch.no_grad():
        torch.testing.assert_close(integer(x), exact(x), rtol=1e-12, atol=1e-12)


def test_codes_that_are_not_affine_are_refused_by_an_int8_export(binary, tmp_path):
    pytest.importorskip("onnxscript", reason="extra: export")
    from qmambair_basicsr.artifacts.onnx.errors import ExportError
    from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx

    with pytest.raises(ExportError, match=r"body\.0\.inner\.weight: the codes of ToyBinary \(BinaryOrders\)"):
        export_onnx(binary[0], tmp_path / "net.onnx", ExportSettings(6, 8))
    assert not (tmp_path / "net.onnx").exists()


def test_a_quantizer_of_binary_orders_trains(binary):
    net = build_network(binary[1]).train()
    calibrate(net, [torch.rand(2, 3, 6, 8)])
    net(torch.rand(1, 3, 6, 8)).square().mean().backward()
    learned = [p for key, p in net.named_parameters() if key.endswith(("alpha", "inner.weight", "decay"))]
    assert len(learned) == 5 and all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in learned)


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
