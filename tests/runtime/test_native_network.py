"""The native network is the lowered one: every quantized architecture, codes equal for the same input at every quantizer."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from tiny_networks import TINY_NETWORK

import qmambair_basicsr  # noqa: F401  (registers the networks)
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.convert import freeze_dls
from qmambair_basicsr.layers.info import full_precision_twin, network_info
from qmambair_basicsr.layers.prepare import site_kinds
from qmambair_basicsr.lowering import captured_codes, lower
from qmambair_basicsr.ops.backend import Backend
from qmambair_basicsr.runtime import native_network
from qmambair_basicsr.runtime.observation import observed

available, reason = Backend("integer", "native").is_available()
pytestmark = pytest.mark.skipif(not available, reason=reason)
OURS = sorted(name for name, cls in ARCH_REGISTRY if cls.__module__.startswith("qmambair_basicsr"))
QUANTIZED = [name for name in OURS if full_precision_twin(name)]
every_network = pytest.mark.parametrize("name", QUANTIZED)
NO_SEARCH = {"search": "none"}
FUSED = {"QMambaIR": 1, "QMambaIRUNet": 1, "QMambaIRv2": 1, "QMambaIRv2Light": 1}


def quant(bits, **changes):
    act = {"type": "LSQOffset", "bits": bits, "search": "none"}
    settings = {
        "weight": {"type": "RFA", "bits": bits},
        "act": act,
        "scan": {"type": "DLS", "bits": bits, "init": NO_SEARCH},
        "attention": act,
        "routing": {"type": "LSQ", "bits": min(2 * bits, 8)},
    }
    return copy.deepcopy(settings | changes)


def dynamic(bits):
    follows = {"type": "DLS", "bits": bits, "init": NO_SEARCH}
    weight = {"type": "LSQ", "bits": bits, "granularity": "channel"}
    return {"weight": weight, **dict.fromkeys(("act", "scan", "attention", "routing"), follows)}


def image(net, batch=1, height=8, width=16):
    x = torch.rand(batch, network_info(net).channels, height, width, generator=torch.Generator().manual_seed(7))
    return x * torch.linspace(0.3, 1, batch).view(-1, 1, 1, 1)


def network(name, settings, **changes):
    torch.manual_seed(0)
    base = full_precision_twin(name)
    keys = inspect.signature(ARCH_REGISTRY.get(base)).parameters
    smaller = TINY_NETWORK | {"d_state": 2, "num_blocks": [0, 0, 0, 1], "num_refinement_blocks": 0}
    options = {key: value for key, value in smaller.items() if key in keys}
    options |= {"eval_routing": "argmax"} if "eval_routing" in keys else {}
    options |= changes
    kinds = site_kinds(build_network({"type": base, **options}))
    settings = {kind: copy.deepcopy(settings[kind]) for kind in (*kinds, "overrides", "transforms") if kind in settings}
    net = build_network({"type": name, **options, "quant": settings}).eval()
    calibrate(net, [image(net, 2)])
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if key.endswith("quantizer.offset"):
                parameter.add_(0.03)
    return net


def assert_same(net, x):
    """Codes equal for the same input everywhere, nearly all equal over the network, outputs near to each other."""
    native, integer = native_network(net), lower(net)
    wanted, got = captured_codes(integer, x), observed(native, x)
    assert got.keys() == wanted.keys()
    count = equal = 0
    for site, calls in wanted.items():
        assert len(calls) == len(got[site]), site
        for codes, seen in zip(calls, got[site], strict=True):
            assert seen.codes.shape == codes.shape, site
            assert seen.equal == codes.size, (
                f"{site}: {codes.size - seen.equal} of {codes.size} codes differ for the same input"
            )
            count += codes.size
            equal += int((codes == seen.codes).sum())
    assert equal >= 0.999 * count, f"{count - equal} of {count} codes differ over the network"
    with torch.no_grad():
        error = (native(x) - integer(x)).square().mean()
    assert -10 * torch.log10(error + 1e-20) > 60
    return native


@pytest.mark.parametrize("name", ["QMambaIR", "QMambaIRv2Light"])
def test_offsets_for_each_channel(name):
    plus = {"weight": {"type": "RFA", "granularity": "channel"}, "act": {"offsets": "channel"}}
    settings = {kind: chosen | plus.get(kind, {}) for kind, chosen in quant(4).items()}
    net = network(name, settings)
    offsets = [p for key, p in net.named_parameters() if key.endswith("act_quantizer.offset") and p.numel() > 1]
    assert len(offsets) > 2
    with torch.no_grad():
        for offset in offsets:
            offset.add_(torch.linspace(-0.05, 0.05, offset.numel()))
    assert_same(net, image(net))


FINER = {
    "half-integers behind rotations": {
        "weight": {"type": "SEQ", "bits": 2, "granularity": "channel"},
        "transforms": {"Hadamard": {"block": 8}},
    },
    "groups": {"weight": {"type": "SEQ", "bits": 2, "granularity": "group16"}},
    "groups of inputs": {"act": {"granularity": "group16"}},
}


@pytest.mark.parametrize("which", FINER)
@pytest.mark.parametrize("name", ["QMambaIR", "QMambaIRv2Light"])
def test_finer_grids(name, which):
    """They run on integer kernels layer by layer; blocks as a whole have no form for rotations and groups."""
    chosen = FINER[which]
    settings = {kind: given | chosen.get(kind, {}) for kind, given in quant(4).items()}
    net = network(name, settings | {"transforms": chosen.get("transforms", {})})
    native = assert_same(net, image(net))
    assert native.kept and not native.fused


@every_network
@pytest.mark.parametrize("bits", [4, 2, 8])
def test_codes_are_those_of_the_lowered_network(name, bits):
    net = network(name, quant(bits))
    native = assert_same(net, image(net))
    assert len(native.fused) >= FUSED.get(name, 0) and not (name in FUSED and native.kept)
    if bits == 4 and freeze_dls(net, [image(net)]):
        assert_same(net, image(net))


@every_network
def test_grids_that_follow_each_image(name):
    net = network(name, dynamic(4))
    native = assert_same(net, image(net))
    pair = image(net, 2)
    with torch.no_grad():
        together, alone = native(pair), torch.cat([native(each) for each in pair.split(1)])
    torch.testing.assert_close(together, alone)


def test_routing_in_full_precision_with_noise():
    """The prompts picked by noise are those of the network: torch's numbers, layer after layer, image after image."""
    settings = quant(4)
    settings.pop("routing")
    net = network("QMambaIRv2Light", settings)
    net.eval_routing = "gumbel"
    native = assert_same(net, image(net))
    pair = image(net, 2)
    with torch.no_grad():
        together, alone = native(pair), torch.cat([native(each) for each in pair.split(1)])
        torch.testing.assert_close(together, alone)
        net.eval_routing = native.network.eval_routing = "argmax"
        assert not torch.equal(native(pair), together), "noise decides"


@pytest.mark.parametrize("changed", [{"resi_connection": "3conv"}, "full precision"])
def test_groups_whose_convolution_has_no_form_keep_their_blocks_fused(changed):
    settings = quant(4)
    if changed == "full precision":
        settings["overrides"] = {
            "layers.*.conv": {"weight": {"type": "Identity", "bits": 32}, "act": {"type": "Identity", "bits": 32}}
        }
        changed = {}
    net = network("QMambaIR", settings, **changed)
    native = assert_same(net, image(net))
    assert all(name.endswith("blocks") for name in native.fused) and native.fused and native.kept


def test_groups_are_fused_as_a_whole():
    net = network("QMambaIR", quant(4))
    native = assert_same(net, image(net))
    assert native.fused == [f"layers.{i}" for i in range(len(net.layers))] and not native.kept


def test_sizes_in_turns_and_threads():
    net = network("QMambaIR", quant(4))
    native = native_network(net)
    images = [image(net, height=height, width=width) for height, width in ((8, 16), (1, 1), (40, 24), (3, 5))]
    first = [native(x) for x in images]
    assert all(torch.equal(native(x), y) for x, y in zip(images, first, strict=True)), (
        "buffers of another size are read"
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert all(torch.equal(native(x), y) for x, y in zip(images, first, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("pattern", "settings"),
    [
        ("*.u", {"scan": {"type": "LSQ", "bits": 32}}),
        ("*.in_proj", {"act": {"type": "QuantSR", "bits": 4}}),
        ("*.x_proj", {"weight": {"type": "LSQ", "bits": 32}}),
        ("*.conv2d", {"act": {"type": "MinMax", "bits": 8}, "weight": {"type": "LSQ", "bits": 8}}),
        ("*.delta", {"scan": {"type": "LSQ", "bits": 4, "granularity": "channel"}}),
    ],
)
def test_parts_in_full_precision_and_other_quantizers(pattern, settings):
    kinds = ("weight", "act", "scan")
    settings = {kind: quant(4)[kind] for kind in kinds} | {"overrides": {pattern: settings}}
    torch.manual_seed(0)
    options = {"embed_dim": 30, "depths": [1], "d_state": 2, "mlp_ratio": 1.0, "upscale": 2}
    net = build_network({"type": "QMambaIR", "upsampler": "pixelshuffledirect", **options, "quant": settings}).eval()
    calibrate(net, [image(net)])
    native = assert_same(net, image(net))
    assert bool(native.kept) == (pattern != "*.conv2d")


def test_the_network_is_left_as_it_is_and_keeps_no_full_precision_weights():
    net = network("QMambaIR", quant(4))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    native = native_network(net)
    native(image(net))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    sizes = {
        parameter.shape for key, parameter in net.named_parameters() if key.endswith(("proj.weight", "x_proj_weight"))
    }
    kept = {t.shape for t in [*native.parameters(), *native.buffers()] if t.is_floating_point()}
    assert sizes and not sizes & kept


def test_what_the_observation_counts_as_different():
    net = network("QMambaIR", quant(4))
    native = native_network(net)
    from qmambair_basicsr.runtime import observation

    sites = observed(native, image(net))
    assert sites
    original = observation._observation

    def other_values(target, values):
        return original(target, values + 0.1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observation, "_observation", other_values)
        wrong = observed(native, image(net))
    assert any(o.equal < o.codes.size for calls in wrong.values() for o in calls)
    assert all(
        np.array_equal(a.codes, b.codes) for site in sites for a, b in zip(sites[site], wrong[site], strict=True)
    )
