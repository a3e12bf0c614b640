"""Sites: what modules declare is what sits in the network, for every registered architecture."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from tiny_networks import TINY_NETWORK

import qmambair_basicsr
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.convert import freeze_parameters
from qmambair_basicsr.layers.info import blocks_of, full_precision_twin, network_info
from qmambair_basicsr.layers.prepare import site_kinds
from qmambair_basicsr.layers.sites import activation_sites, network_sites, parameter_sites, quantizers_of, sites_of
from qmambair_basicsr.quantizers import Site

PACKAGE = Path(qmambair_basicsr.__file__).parent
QUANT = {
    "weight": {"type": "LSQ", "bits": 4, "granularity": "channel"},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
    "attention": {"type": "LSQ", "bits": 8},
    "routing": {"type": "LSQ", "bits": 8},
}
OURS = sorted(name for name, cls in ARCH_REGISTRY if cls.__module__.startswith("qmambair_basicsr"))
QUANTIZED = [name for name in OURS if full_precision_twin(name)]
every_network = pytest.mark.parametrize("name", QUANTIZED)


def full_precision(name):
    keys = inspect.signature(ARCH_REGISTRY.get(name)).parameters
    return build_network({"type": name, **{key: value for key, value in TINY_NETWORK.items() if key in keys}})


def quantized(name):
    base = full_precision_twin(name)
    keys = inspect.signature(ARCH_REGISTRY.get(base)).parameters
    chosen = {key: value for key, value in TINY_NETWORK.items() if key in keys}
    kinds = site_kinds(full_precision(base))
    return build_network({"type": name, **chosen, "quant": {kind: QUANT[kind] for kind in kinds}}), kinds


@every_network
def test_sites_are_the_quantizers_of_the_network_in_its_order(name):
    net, kinds = quantized(name)
    placed = network_sites(net)
    assert [p.name for p in placed] == list(quantizers_of(net))
    assert [p.quantizer for p in placed] == list(quantizers_of(net).values())
    assert {p.site.kind for p in placed} == set(kinds)
    for p in placed:
        assert p.quantizer.site == p.site and net.get_submodule(p.site.owner) is p.owner
    labels = [p.site.label for p in placed]
    assert len(set(labels)) == len(labels)


@every_network
def test_a_quantized_module_declares_the_sites_of_the_full_one(name):
    net, full = quantized(name)[0], full_precision(full_precision_twin(name))
    declared = [s for module in full.modules() for s in sites_of(module)]  # layers of torch declare nothing themselves
    found = [s for path, module in full.named_modules() if sites_of(module) for s in sites_of(net.get_submodule(path))]
    assert declared and declared == found


@every_network
def test_parameters_of_sites_are_there_with_their_shape_and_value(name):
    net, _ = quantized(name)
    parameters = dict(net.named_parameters())
    placed = parameter_sites(net)
    assert len({p.parameter for p in placed}) == len(placed)
    for p in placed:
        parameter = parameters[p.parameter]
        assert tuple(parameter.shape) == p.site.shape
        value = p.tensor().clone()
        assert p.site.derived is not None or torch.equal(value, parameter)
        with torch.no_grad():
            before = parameter.clone()
            parameter.zero_()
        p.set_tensor(value)
        torch.testing.assert_close(parameter, before)


@every_network
def test_freezing_keeps_the_sites(name):
    net, _ = quantized(name)
    calibrate(net, [torch.rand(1, network_info(net).channels, 16, 16)])
    before = [(p.name, p.site) for p in network_sites(net)]
    activations = [p.name for p in activation_sites(net)]
    freeze_parameters(net)
    assert [(p.name, p.site) for p in network_sites(net)] == before
    assert [p.quantizer.site for p in network_sites(net)] == [site for _, site in before]
    assert [p.name for p in activation_sites(net)] == activations


@pytest.mark.parametrize("name", OURS)
def test_facts_about_a_network(name):
    twin = full_precision_twin(name)
    net = full_precision(name) if twin is None else quantized(name)[0]
    info = network_info(net)
    assert info.twin == twin and (twin is None or network_info(full_precision(twin)).blocks == info.blocks)
    blocks = blocks_of(net)
    assert len(blocks) >= 2 and not any(a != b and a.startswith(f"{b}.") for a in blocks for b in blocks)
    seen = {}
    for path, block in blocks.items():
        block.register_forward_hook(lambda m, given, out, path=path: seen.update({path: (given[0].shape, out.shape)}))
    image = torch.rand(1, info.channels, 16, 16)
    with torch.no_grad():
        y = net.train()(image)
    assert y.shape == (1, info.channels, 16 * info.scale, 16 * info.scale)
    assert seen.keys() == blocks.keys() and all(given == out for given, out in seen.values())
    assert any(info.keeps(path) for path, _ in net.named_modules())


def test_site_survives_copies():
    site = Site.of_weight(4, shape=(4, 3), operand="weight", slot="weight_quantizer", owner="body.0")
    assert copy.deepcopy(site) == site == pickle.loads(pickle.dumps(site))
    assert (site.name, site.label, site.quantizer_path) == ("body.0", "body.0.weight", "body.0.weight_quantizer")
    assert site.parameter_path is None and site.matches("body.*") and not site.matches("*.weight")
    part = Site.of_param(part="A", owner="scan", slot="quantizers.A", parameter="logs")
    assert (part.name, part.label, part.parameter_path) == ("scan.A", "scan.A", "scan.logs")
    assert part.matches("scan.A") and part.matches("scan")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"kind": "wieght"}, "kind 'wieght'"), ({"role": "bias"}, "role 'bias'"), ({"copies": 0}, "copies must be")],
)
def test_impossible_site_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Site(**wrong)


def source_files(*folders):
    return [path for folder in folders for path in sorted((PACKAGE / folder).rglob("*.py"))]


def test_only_the_networks_know_the_names_of_their_parameters():
    here = ("archs/", "ops/")
    elsewhere = [p for p in source_files("") if not p.relative_to(PACKAGE).as_posix().startswith(here)]
    named = [str(p) for p in elsewhere if re.search(r"A_logs|dt_projs|x_proj_weight", p.read_text(encoding="utf-8"))]
    assert not named


def test_layers_and_quantizers_import_no_network():
    importing = re.compile(r"^\s*(from|import)\s[^\n]*\barchs\b", re.MULTILINE)
    assert not [str(p) for p in source_files("layers", "quantizers") if importing.search(p.read_text(encoding="utf-8"))]


def test_nobody_guesses_what_a_network_is():
    guess = re.compile(r"""getattr\(net, ["']|hasattr\(net, ["']|removeprefix\(["']Q["']\)""")
    assert not [str(p) for p in source_files("") if guess.search(p.read_text(encoding="utf-8"))]
