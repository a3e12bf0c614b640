"""Codes that are not affine, of a toy quantizer in one file, through everything that reads codes."""

from __future__ import annotations

import json

import pytest
import torch
from basicsr.archs import build_network
from toy_networks import QUANT, toys  # noqa: F401

from qmambair_basicsr.artifacts.packed import PackedCheckpointError, load_packed, save_packed
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.sites import parameter_sites
from qmambair_basicsr.lowering import captured_codes, frozen_copy, lower
from qmambair_basicsr.quantizers import (
    BinaryOrders,
)
from qmambair_basicsr.studies.complexity_count import measure

BINARY = {"type": "ToyBinary", "bits": 2}


@pytest.fixture(scope="module")
def binary():
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
