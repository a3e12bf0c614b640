"""Sites: what modules declare is what sits in the network, for every registered architecture."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from tiny_networks import OURS, QUANTIZED, kinds_of, tiny_network, tiny_options

import qmambair_basicsr
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.convert import freeze_parameters
from qmambair_basicsr.layers.info import blocks_of, full_precision_twin, match_modules, network_info
from qmambair_basicsr.layers.sites import activation_sites, network_sites, parameter_sites, quantizers_of, sites_of
from qmambair_basicsr.quantizers import Site, SpecError

PACKAGE = Path(qmambair_basicsr.__file__).parent
QUANT = {
    "weight": {"type": "LSQ", "bits": 4, "granularity": "channel"},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
    "attention": {"type": "LSQ", "bits": 8},
    "routing": {"type": "LSQ", "bits": 8},
    "state": {"type": "LSQ", "bits": 8},
}
every_network = pytest.mark.parametrize("name", QUANTIZED)


def full_precision(name):
    """A small network, the one of a quantized type as ``prepare`` sees it."""
    if name in QUANTIZED:
        return ARCH_REGISTRY.get(name).before_prepare(**tiny_options(name))
    return build_network({"type": name, **tiny_options(name)})


def quantized(name):
    return build_network(tiny_network(name, QUANT)), kinds_of(name, tiny_options(name))


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
    net, full = quantized(name)[0], full_precision(name)
    declared = [s for module in full.modules() for s in sites_of(module)]  # layers of torch declare nothing themselves
    found = [s for path, module in full.named_modules() if sites_of(module) for s in sites_of(net.get_submodule(path))]
    assert declared == found
    assert declared or set(kinds_of(name, tiny_options(name))) == {"weight", "act"}, (
        "no scan and no product: all sites are torch's layers'"
    )


@every_network
def test_the_network_that_is_prepared_is_the_full_one(name):
    """Also where products of a class of another package became modules."""
    full, ours = full_precision(full_precision_twin(name)).eval(), full_precision(name).eval()
    ours.load_state_dict(full.state_dict())
    image = torch.rand(2, network_info(full).channels, 16, 24)
    with torch.no_grad():
        torch.manual_seed(0)
        wanted = full(image)
        torch.manual_seed(0)
        torch.testing.assert_close(ours(image), wanted, rtol=1e-5, atol=1e-5)


@every_network
def test_convolutions_behind_groups_may_stay_in_full_precision(name):
    described = tiny_network(name, QUANT)
    groups = match_modules(build_network(described), network_info(build_network(described)).group_convs)
    if not groups:
        with pytest.raises(SpecError, match=rf"quant\.conv: {name} has no convolutions behind groups of blocks"):
            build_network({**described, "quant": described["quant"] | {"conv": "fp"}})
        return
    pattern = f"{groups[0]}*"
    kept, user = (
        {**described["quant"], "conv": "fp", "overrides": more} for more in ({}, {pattern: {"act": QUANT["act"]}})
    )

    def widths(quant):
        placed = network_sites(build_network({**described, "quant": quant}))
        return {p.name: p.quantizer.bits for p in placed if p.name.startswith(f"{groups[0]}.")}

    assert set(widths(described["quant"]).values()) == {4} and set(widths(kept).values()) == {32}
    assert sorted(set(widths(user).values())) == [4, 32], "what the option file says comes last"


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
    here = ("archs/", "ops/", "runtime/")  # the last computes what modules of the first do
    elsewhere = [p for p in source_files("") if not p.relative_to(PACKAGE).as_posix().startswith(here)]
    named = [str(p) for p in elsewhere if re.search(r"A_logs|dt_projs_|x_proj_weight", p.read_text(encoding="utf-8"))]
    assert not named


def test_layers_and_quantizers_import_no_network():
    importing = re.compile(r"^\s*(from|import)\s[^\n]*\barchs\b", re.MULTILINE)
    assert not [str(p) for p in source_files("layers", "quantizers") if importing.search(p.read_text(encoding="utf-8"))]


def test_nobody_guesses_what_a_network_is():
    guess = re.compile(r"""getattr\(net, ["']|hasattr\(net, ["']|removeprefix\(["']Q["']\)""")
    assert not [str(p) for p in source_files("") if guess.search(p.read_text(encoding="utf-8"))]
