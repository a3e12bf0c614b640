"""``scan:``: a method in the modules around the scans, and SPR2Q or 2DQuant in everything else."""

from __future__ import annotations

import copy

import pytest
import torch
from basicsr.archs import build_network
from test_every_method import NETWORKS, network
from tiny_networks import QUANTIZED, tiny_options

from qmambair_basicsr.layers.merging import input_sources
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.layers.transforms import transforms_of
from qmambair_basicsr.ptq import build_method, quantize
from qmambair_basicsr.ptq.blockwise import capture
from qmambair_basicsr.ptq.bounds import TrainedBounds
from qmambair_basicsr.ptq.ptq4vm import cosine_loss
from qmambair_basicsr.ptq.spr2q import Rectifiers, rectified_places
from qmambair_basicsr.ptq.training import full_precision
from qmambair_basicsr.ptq.within import ITERATIONS, apply_within, method_within, scan_modules
from qmambair_basicsr.quantizers import SpecError
from qmambair_basicsr.recipes.option_networks import LINEARS_BESIDE_SCANS, WITHOUT_SCAN
from qmambair_basicsr.recipes.ptq_contents import METHODS, method_options, ptq_rows, quant_options

SCAN_ROWS = [name for name, run in METHODS.items() if "scan" in run.options]
FAMILIES = [name.removeprefix("Q") for name in QUANTIZED if name.removeprefix("Q") not in WITHOUT_SCAN]
V2 = "MambaIRv2Light"
SAMPLES = 1000  # searches over more take most of the time


def images_of(size=8, count=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, size, size, generator=generator) for _ in range(count)]


def quick(family, row, iterations=8, **more):
    """A row's method with few iterations."""
    options = {**method_options(family, row), "samples": SAMPLES, **more}
    if isinstance(options["scan"], dict):
        options["scan"] = {**options["scan"], "iterations": iterations}
    if options["type"] == "SPR2Q":
        options |= {"routing": 1, "rank": 2}
    return build_method(options)


def held_part(family, row, iterations=8, images=None, dtype=None):
    """A network in which the modules around the scans alone are quantized, and what it was before."""
    net = network(family, row).to(dtype)
    before = copy.deepcopy(net)
    method, _ = method_within(METHODS[row].options["scan"], "scan")
    method.settings["samples"] = SAMPLES
    images = images_of() if images is None else images
    apply_within(method, net, images, scan_modules(net), iterations if method.trains else None)
    return net, before


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", SCAN_ROWS)
@pytest.mark.parametrize("family", ["MambaIR", V2])
def test_scans_are_left_to_another_method(family, row):
    """Around the scans it is that method's network, whatever the iterations do to the rest."""
    images, nets = images_of(), []
    for iterations in (2, 6):
        nets.append(network(family, row))
        quantize(nets[-1], quick(family, row), images, iterations)
    alone, _ = held_part(family, row, images=images)
    states, prefixes = [net.state_dict() for net in (*nets, alone)], scan_modules(alone)
    held = [key for key in states[0] if key.startswith(prefixes)]
    assert any(key.endswith(".lower") for key in held)
    assert all(torch.equal(states[0][key], state[key]) for key in held for state in states)
    rest = set(states[0]) - set(held)
    moved = {key for key in rest if not torch.equal(states[0][key], states[1][key])}
    assert any(key.endswith((".lower", ".upper")) for key in moved)
    rectified = {f"{name}.weight" for name in rectified_places(nets[0]) if not name.startswith(prefixes)}
    assert bool(rectified) == (family == V2) and rectified <= moved


@pytest.mark.parametrize("row", SCAN_ROWS)
def test_spr2q_rectifies_everything_beside_the_scans(row):
    """Also behind a method that merges transforms of its own."""
    net = network(V2, row)
    linears, prefixes = set(rectified_places(net)), scan_modules(net)
    method = quick(V2, row)
    method.open(net)
    method.calibrate(images_of())
    attached = transforms_of(net)
    assert set(attached) == {name for name in linears if not name.startswith(prefixes)}
    assert all(isinstance(t, Rectifiers) for t in attached.values()) and {*attached.values()} == {*method.rectifiers}
    for placed in network_sites(net):
        if placed.quantizer.bits != 32:
            assert isinstance(placed.quantizer, TrainedBounds) != placed.site.name.startswith(prefixes)
    trained = {id(p) for group in method.optimizers[0].param_groups for p in group["params"]}
    assert not trained & {id(p) for name, p in net.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"MaIRUNet", "EAMamba", "MambaIRv2"}))
def test_ptq4vm_within_every_kind_of_module(family):
    """Those left out have modules of others."""
    images = images_of(8 if family in NETWORKS else 16, 1)
    net, before = held_part(family, "PTQ4VMScan", images=images)
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before.state_dict()[key])}
    assert all(any(key.startswith(module) for key in moved) for module in scan_modules(net))
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def test_rows_have_a_method_that_their_network_can_have():
    for family in FAMILIES:
        with torch.device("meta"):
            config = {"type": f"Q{family}", **tiny_options(f"Q{family}"), "quant": quant_options(family, 4, "MinMax")}
            net = build_network(config)
        beside = [name for name in rectified_places(net) if not name.startswith(scan_modules(net))]
        assert bool(beside) == (family in LINEARS_BESIDE_SCANS), family
        assert set(SCAN_ROWS) <= set(ptq_rows(family))
        for row in SCAN_ROWS:
            options = method_options(family, row)
            assert options["type"] == ("SPR2Q" if beside else "TwoDQuant")
            build_method(options)
            own = method_options(family, "SPR2Q")
            assert all(own[key] == value for key, value in options.items() if key in own and key != "type")
            assert METHODS[row].iterations == METHODS["SPR2Q"].iterations
    assert not set(SCAN_ROWS) & set(ptq_rows("SwinIR"))


# -- what happens in the modules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", SCAN_ROWS)
@pytest.mark.parametrize("family", ["MambaIR", V2])
def test_full_precision_stays_and_the_rest_is_not_touched(family, row):
    """Transforms within the modules preserve the output; only they, and what feeds them, have changed."""
    images = [x.double() for x in images_of()]
    net, before = held_part(family, row, images=images, dtype=torch.float64)
    x = torch.rand(1, 3, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(full_precision(net)(x), full_precision(before)(x), rtol=1e-9, atol=1e-9)
    prefixes, states = scan_modules(net), [n.state_dict() for n in (before, net)]
    feeding = {source.name for name, source in input_sources(net).items() if name.startswith(prefixes)}
    changed = {key for key in states[0] if not torch.equal(states[0][key], states[1][key])}
    assert changed and all(key.startswith((*prefixes, *(f"{name}." for name in feeding))) for key in changed)
    for placed in network_sites(net):
        if placed.quantizer.bits != 32:
            assert placed.quantizer.is_initialized() == placed.site.name.startswith(prefixes)
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]


def test_rotations_of_the_option_file_beside_the_modules_stay():
    """They are no transforms of the method: its merge must not fold them."""
    config = {"type": f"Q{V2}", **NETWORKS[V2], "eval_routing": "argmax"}
    config["quant"] = quant_options(V2, 4, "MambaQuantScan") | {"transforms": {"Hadamard": {"places": ["*.fc2"]}}}
    torch.manual_seed(0)
    net = build_network(config).eval().double()
    before, images = full_precision(net), [x.double() for x in images_of()]
    method, _ = method_within("MambaQuant", "scan")
    apply_within(method, net, images, scan_modules(net))
    kept = transforms_of(net)
    assert kept and not any(t.folded for t in kept.values())
    with torch.no_grad():
        torch.testing.assert_close(full_precision(net)(images[0]), before(images[0]), rtol=1e-9, atol=1e-9)


def test_training_within_brings_the_modules_nearer_to_full_precision():
    images, losses = images_of(16, 4), []
    for iterations in (1, 60):
        net, before = held_part(V2, "PTQ4VMScan", iterations, images)
        full, total = full_precision(before), 0.0
        for prefix in scan_modules(net):
            name = prefix.rstrip(".")
            target = capture(full, name, images, outputs=True)
            with torch.no_grad():
                result = target.run(net.get_submodule(name), torch.cat(target.inputs))
                total += cosine_loss(result, torch.cat(target.outputs)).item()
        losses.append(total)
    assert losses[1] < losses[0]


def test_grids_of_scan_parameters_reach_from_end_to_end():
    """The search of activations would spend levels on 0, which A has not."""
    net = network(V2, "PTQ4VMScan", 2)
    method = build_method({"type": "PTQ4VM", "samples": SAMPLES})
    method.open(net)
    method.calibrate(images_of())
    found = [p for p in network_sites(net) if p.site.kind == "scan" and p.site.parameter and p.quantizer.bits != 32]
    assert {p.site.part for p in found} >= {"A", "dt_bias"}
    for placed in found:
        value, rounded = placed.tensor(), placed.quantizer(placed.tensor())
        step = (value.max() - value.min()) / 3
        assert (rounded - value).abs().max() <= 0.51 * step
        torch.testing.assert_close(torch.stack(rounded.aminmax()), torch.stack(value.aminmax()))
    method.finish(net)
    for placed in network_sites(net):
        if placed.site.part == "A" and placed.site.kind == "scan":
            value = placed.tensor()
            torch.testing.assert_close(placed.quantizer(value).amin(), value.amin())


def test_within_is_reproducible_by_its_seed():
    def state(seed):
        net = network(V2, "PTQ4VMScan")
        method = quick(V2, "PTQ4VMScan", seed=seed)
        method.open(net)
        method.calibrate(images_of(count=6))  # more than one iteration's: which ones is drawn
        return {key: value for key, value in net.state_dict().items() if key.startswith(scan_modules(net))}

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


# -- options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        ("Qamba", "scan: unknown value 'Qamba'.*did you mean 'Quamba'"),
        ({"type": "Qamba"}, "scan.type: unknown value 'Qamba'.*did you mean 'Quamba'"),
        ({"iterations": 3}, "scan.type: unknown value None"),
        ({"type": "own"}, "scan.type: unknown value 'own'"),
        ({"type": "BRECQ"}, "scan.type: unknown value 'BRECQ'"),
        ({"type": "PTQ4VM", "iteration": 3}, "scan: unknown key for PTQ4VM 'iteration'"),
        ({"type": "PTQ4VM", "alpha": 3}, r"scan.alpha: expected a number in \[0, 1\]"),
        ({"type": "Quamba", "iterations": 3}, "scan.iterations: Quamba does not train"),
        ({"type": "PTQ4VM", "iterations": 0}, "scan.iterations: expected a whole number from 1 on, got 0"),
        ({"type": "PTQ4VM", "iterations": 2.5}, "scan.iterations: expected a whole number"),
        ({"type": "PTQ4VM", "iterations": True}, "scan.iterations: expected a whole number"),
    ],
)
@pytest.mark.parametrize("kind", ["TwoDQuant", "SPR2Q"])
def test_wrong_options_of_the_scan_are_named(kind, scan, message):
    with pytest.raises(SpecError, match=f"ptq.method.{message}"):
        build_method({"type": kind, "scan": scan}, "ptq.method")


def test_networks_without_what_a_row_needs_are_refused():
    with pytest.raises(SpecError, match=r"ptq\.method\.scan: QSwinIR has no scan"):
        quantize(network("SwinIR", "MinMax"), build_method({"type": "SPR2Q", "scan": "Quamba"}), images_of(), 1)
    with pytest.raises(SpecError, match="QMambaIR has none outside of the modules around its scans"):
        quantize(network("MambaIR", "MinMax"), build_method({"type": "SPR2Q", "scan": "Quamba"}), images_of(), 1)
    with pytest.raises(ValueError, match=r"PTQ4VM reconstructs 8 blocks.*not 3"):
        quantize(network("MambaIRUNet", "PTQ4VMScan"), quick("MambaIRUNet", "PTQ4VMScan", 3), images_of(16), 2)


def test_samples_and_seed_are_those_of_the_whole_unless_it_says_otherwise(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "qmambair_basicsr.ptq.two_d_quant.apply_within",
        lambda method, net, batches, modules, iterations: seen.append((method.settings, iterations)),
    )
    for scan in ("PTQ4VM", {"type": "PTQ4VM", "samples": 500, "iterations": 30}, "Quamba"):
        method = build_method({"type": "TwoDQuant", "samples": 1000, "seed": 7, "scan": scan})
        method.open(network(V2, "MinMax"))
        method.calibrate(images_of())
        assert method.settings["scan"] == scan
    assert [(s["samples"], s["seed"], n) for s, n in seen] == [(1000, 7, ITERATIONS), (500, 7, 30), (1000, 7, None)]
