"""Every registered method on every kind of network: finite, an ordinary network, the same with the same seed."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from tiny_networks import QUANTIZED, tiny_options

from qmambair_basicsr.artifacts.packed import load_packed, save_packed
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.lowering import frozen_copy, lower
from qmambair_basicsr.ptq import PTQ_METHODS, build_method, quantize
from qmambair_basicsr.ptq.bounds import BoundsTogether, bound_parameters
from qmambair_basicsr.ptq.training import full_precision
from qmambair_basicsr.quantizers import SpecError
from qmambair_basicsr.recipes.option_networks import WITHOUT_SCAN
from qmambair_basicsr.recipes.ptq_contents import METHODS, method_options, ptq_rows, quant_options
from qmambair_basicsr.runtime import native_network

V2 = {"embed_dim": 12, "d_state": 4, "depths": [1], "num_heads": [2], "window_size": 4, "inner_rank": 6, "num_tokens": 5,
      "upscale": 2, "upsampler": "pixelshuffledirect", "mlp_ratio": 1.0}  # fmt: skip
NETWORKS = {
    "MambaIR": {"upsampler": "pixelshuffledirect", "embed_dim": 30, "depths": [1], "d_state": 2, "mlp_ratio": 1.2, "upscale": 2},
    "MambaIRv2Light": V2,
    "SwinIR": {"upscale": 2, "img_size": 8, "window_size": 4, "depths": [2], "embed_dim": 12, "num_heads": [2],
               "mlp_ratio": 2.0, "upsampler": "pixelshuffledirect"},
    "EDSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2},
}  # fmt: skip
LEVELS = {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "d_state": 2, "dim": 30}
QUICK = {"SPR2Q": {"routing": 2, "rank": 2}, "FIMAQ": {"images": 1, "rank": 2}, "APHQViT": {"images": 1}}


def network(family, method, bits=4):
    config = {"type": f"Q{family}", **copy.deepcopy(NETWORKS.get(family) or tiny_options(f"Q{family}", **LEVELS))}
    config["quant"] = quant_options(family, bits, method)
    torch.manual_seed(0)
    return build_network(config).eval()


def run(family, method, bits=4, size=8, length=8):
    net, generator = network(family, method, bits), torch.Generator().manual_seed(1)
    full = full_precision(net)
    images = [torch.rand(1, 3, size, size, generator=generator) for _ in range(2)]
    made = build_method({"type": method, **QUICK.get(method, {})})
    quantize(net, made, images, iterations=max(8, length) if made.trains else None)
    with torch.no_grad():
        error = [((net(x) - full(x)).square().mean() / full(x).var()).item() for x in images]
    return net, sum(error) / len(error)


def refused(family, method):
    """No option files are offered for it, and whoever writes one is told why."""
    with pytest.raises(SpecError, match=f"{method} rectifies linears, and Q{family} has none"):
        run(family, method)


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("method", sorted(PTQ_METHODS))
def test_method_leaves_an_ordinary_network_near_full_precision(method, family):
    if f"Q{family}" not in ARCH_REGISTRY:
        pytest.skip(f"no Q{family} here")
    if method not in ptq_rows(family):
        refused(family, method)
        return
    net, error = run(family, method)
    assert error < 0.5
    again, same = run(family, method)
    assert same == error
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    fresh = network(family, method)
    fresh.load_state_dict(net.state_dict(), strict=True)
    x = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        assert torch.equal(fresh(x), net(x))


@pytest.mark.parametrize(
    "family", [name.removeprefix("Q") for name in QUANTIZED if name.removeprefix("Q") not in NETWORKS]
)
@pytest.mark.parametrize("method", ["MinMax", "SPR2Q", "PTQ4VM"])
def test_every_other_network(method, family):
    """One method of each kind."""
    if method not in ptq_rows(family):
        refused(family, method)
        return
    net, error = run(family, method, size=16, length=16)
    assert error < 2 and all(tensor.isfinite().all() for tensor in net.state_dict().values())


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_row_of_the_option_files_fits_every_network(name):
    family = name.removeprefix("Q")
    for method in ptq_rows(family):
        with torch.device("meta"):
            net = build_network({"type": name, **tiny_options(name), "quant": quant_options(family, 4, method)})
        kept = [
            p
            for p in network_sites(net)
            if p.site.part is not None and p.site.part.endswith("D") and p.site.kind == "scan"
        ]
        assert all(site.quantizer.bits == 32 for site in kept) and bool(kept) == (family not in WITHOUT_SCAN)


@pytest.mark.parametrize("bits", [1, 2])
def test_spr2q_at_few_bits(bits):
    _, error = run("MambaIRv2Light", "SPR2Q", bits)
    assert error < 2


@pytest.mark.parametrize(
    "options", [{"gating": "network"}, {"loss": "formula", "feature_weight": 0.02}], ids=["gate", "loss"]
)
def test_options_of_spr2q_train(options):
    net = network("MambaIR", "SPR2Q")
    images = [torch.rand(2, 3, 8, 8)]
    quantize(net, build_method({"type": "SPR2Q", "routing": 2, **options}), images, iterations=6)
    assert net(images[0]).isfinite().all()


@pytest.mark.parametrize("method", ["Quamba", "Quamba2", "MambaQuant"])
def test_a_percentile_of_attention_maps_is_theirs_alone(method):
    images, bounds = [torch.rand(1, 3, 8, 8)], []
    for percent in (100, 90):
        net = network("MambaIRv2Light", method)
        quantize(net, build_method({"type": method, "map_percent": percent}), images)
        placed = {p.site.label: p for p in network_sites(net) if p.quantizer.bits != 32}
        bounds.append({label: p.quantizer.upper.detach() for label, p in placed.items()})
    changed = {label for label in bounds[0] if not torch.equal(bounds[0][label], bounds[1][label])}
    assert changed == {label for label in bounds[0] if label.endswith(".map")}
    assert all((bounds[1][label] < bounds[0][label]).all() for label in changed)
    with pytest.raises(SpecError, match="'map_percent'"):
        build_method({"type": "MinMax", "map_percent": 90})


def test_rows_cut_attention_maps_where_there_are_any():
    for name in QUANTIZED:
        family = name.removeprefix("Q")
        with torch.device("meta"):
            net = build_network({"type": name, **tiny_options(name), "quant": quant_options(family, 4, "Quamba")})
        maps = any(p.site.part == "map" and p.quantizer.bits != 32 for p in network_sites(net))
        assert maps == ("map_percent" in method_options(family, "Quamba"))


@pytest.mark.parametrize("method", ["MinMax", "MambaQuant"])
def test_gptq_and_bias_correction_go_with_static_methods(method):
    net = network("MambaIR", method)
    images = [torch.rand(1, 3, 8, 8) for _ in range(2)]
    options = {"weights": "gptq", "bias_correction": True}
    quantize(net, build_method({"type": method, **options}), images)
    assert net(images[0]).isfinite().all()


def test_recipes_are_of_registered_methods():
    assert {run.type or name for name, run in METHODS.items()} == set(PTQ_METHODS)


@pytest.mark.parametrize("bits", [4, 1])
def test_grids_worked_out_together_are_those_of_each(bits, monkeypatch):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    runs = []
    for lent in (BoundsTogether.lent, lambda together: nullcontext()):
        monkeypatch.setattr(BoundsTogether, "lent", lent)
        method = build_method({"type": "SPR2Q", "routing": 1, "rank": 2, "loss": "formula"})
        method.open(network("MambaIRv2Light", "SPR2Q", bits))
        method.calibrate([images])
        losses = method.losses(0, images)
        sum(losses.values()).backward()
        runs.append((losses, [parameter.grad for parameter in method.trained()]))
    (losses, gradients), (alone, expected) = runs
    assert all(torch.equal(losses[key], alone[key]) for key in alone)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-8)


ROWS_OF_EVERY_KIND = ("MinMax", "Quamba2", "PTQ4VM", "BRECQ", "QuantDLLM", "MambaQuantScan")


@pytest.mark.parametrize(
    "row, family", [(row, family) for family in NETWORKS for row in ROWS_OF_EVERY_KIND if row in ptq_rows(family)]
)
def test_networks_of_every_row_run_on_integers(row, family, tmp_path):
    """One row for each kind of ``quant:`` block; the packed file holds the same network."""
    routing = {"eval_routing": "argmax"} if family == "MambaIRv2Light" else {}
    config = {"type": f"Q{family}", **copy.deepcopy(NETWORKS[family]), **routing}
    config["quant"] = quant_options(family, 4, row)
    torch.manual_seed(0)
    net, x = build_network(copy.deepcopy(config)).eval(), torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    static = row in PTQ_METHODS and not PTQ_METHODS[row].trains
    quantize(net, build_method({"type": row if static else "MinMax"}), [x])
    pytest.importorskip("safetensors", reason="extra: export")
    save_packed(net, config, tmp_path / "net.safetensors")
    with torch.no_grad():
        wanted = net(x)
        assert torch.equal(load_packed(tmp_path / "net.safetensors")(x), wanted)
        exact = frozen_copy(net, torch.float64)(x.double())
        torch.testing.assert_close(lower(net, torch.float64)(x.double()), exact, atol=1e-9, rtol=1e-9)
        assert (
            native_network(net)(x) - wanted
        ).square().mean() < 1e-3 * wanted.var()  # a code may fall to the other side


@pytest.mark.parametrize("family", ["MambaIR", "MambaIRv2Light"])
def test_quantized_states_are_lowered_and_exported(family, tmp_path):
    """The states of a scan are a site that others do not have: the integer network, the native one and the graph keep it."""
    file = pytest.importorskip("qmambair_basicsr.artifacts.onnx.file")
    config = {"type": f"Q{family}", **NETWORKS[family], "quant": quant_options(family, 4, "MinMax")}
    torch.manual_seed(0)
    net = build_network(config | ({"eval_routing": "argmax"} if family == "MambaIRv2Light" else {})).eval()
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    quantize(net, build_method({"type": "MinMax"}), [x])
    with torch.no_grad():
        wanted = net(x)
        without = copy.deepcopy(net)
        for module in without.modules():
            if "h" in (getattr(module, "quantizers", None) or ()):
                del module.quantizers["h"]
        assert (without(x) - wanted).abs().max() > 1e-3  # they count
        torch.testing.assert_close(lower(net)(x), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(native_network(net)(x), wanted, atol=1e-5, rtol=1e-5)
    pytest.importorskip("onnxruntime")
    file.export_onnx(net, tmp_path / "net.onnx", file.ExportSettings(16, 24, scan_chunk=4))
    session = file.session(tmp_path / "net.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), wanted, atol=1e-5, rtol=1e-5)


def test_relative_steps_of_bounds_are_shares_of_their_ranges():
    """Adam's first step is its rate for every bound, whatever its gradient."""
    net, images = network("MambaIRv2Light", "TwoDQuant"), torch.rand(2, 3, 8, 8)
    method = build_method({"type": "TwoDQuant", "bound_steps": "relative", "loss": "formula"})
    method.open(net)
    method.calibrate([images])
    method.plan(1)
    before = [b.detach().clone() for b in bound_parameters(net)]
    method.step(0, images)
    bounds = bound_parameters(net)
    shares = []
    for lowest, highest, low, high in zip(bounds[::2], bounds[1::2], before[::2], before[1::2], strict=True):
        half = (high - low) / 2
        shares += [((lowest - low) / half).abs(), ((highest - high) / half).abs()]
    shares = torch.cat(shares)
    moved = shares[shares > 0]
    assert len(moved) > len(shares) / 2
    assert (moved < 1.01 * method.settings["lr"]).all() and moved.median() > 0.9 * method.settings["lr"]
