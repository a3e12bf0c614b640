"""A post-training method of one's own is one file, and what it leaves is an ordinary quantized network."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

import qmambair_basicsr
from qmambair_basicsr import ptq
from qmambair_basicsr.artifacts.packed import load_packed, save_packed
from qmambair_basicsr.layers.merging import inner_sources
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.layers.transforms import Smoothing, attach, places
from qmambair_basicsr.lowering import lower
from qmambair_basicsr.ptq import PTQ_METHODS, PTQMethod, build_method, quantize, register_method
from qmambair_basicsr.quantizers import SpecError, UncalibratedError

NETWORK = {"type": "QMambaIR", "upsampler": "pixelshuffledirect", "embed_dim": 30, "depths": [1], "d_state": 2,
           "mlp_ratio": 1.0, "upscale": 2, "quant": {k: {"type": "MinMax", "bits": 8} for k in ("weight", "act", "scan")}}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def toys():
    """The files in ``toys/ptq`` as if they lay in the package's folder, for this module only."""
    known = dict(PTQ_METHODS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptq, "__path__", [*ptq.__path__, str(Path(__file__).parents[1] / "toys" / "ptq")])
        ptq.load_methods()
        yield
    for added in PTQ_METHODS.keys() - known.keys():
        del PTQ_METHODS[added]
    for module in [m for m in sys.modules if m.startswith(f"{qmambair_basicsr.__name__}.ptq.toy_")]:
        del sys.modules[module]


def network(seed=0):
    torch.manual_seed(seed)
    return build_network(copy.deepcopy(NETWORK)).eval()


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, 8, 8, generator=generator) for _ in range(2)]


@pytest.fixture(scope="module")
def quantized(toys):
    return quantize(network(), build_method({"type": "ToySmooth", "percent": 99.99}), images())


def test_checkpoint_loads_without_knowing_the_method(quantized, tmp_path):
    torch.save({"params": quantized.state_dict()}, tmp_path / "net.pth")
    loaded = network(seed=5)
    loaded.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True)["params"], strict=True)
    x = torch.rand(1, 3, 8, 16)
    with torch.no_grad():
        wanted = quantized(x)
        assert torch.equal(loaded(x), wanted)
        torch.testing.assert_close(lower(loaded, torch.float64)(x.double()).float(), wanted, atol=0.03, rtol=0)
    pytest.importorskip("safetensors", reason="extra: export")
    save_packed(loaded, NETWORK, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(load_packed(tmp_path / "net.safetensors")(x), wanted)


def test_method_smoothed_and_stays_near_full_precision(quantized):
    full, net = network(), quantized
    parameters = {key: p for key, p in net.named_parameters() if "quantizer" not in key}
    changed = {key for key, p in parameters.items() if not torch.equal(p, full.get_parameter(key))}
    known = places(full)
    expected = {
        f"{place.rpartition('.')[0]}.{known[name].parameter}".lstrip(".")
        for place, source in inner_sources(full).items()
        for name in (place, source.name)
    }
    assert changed == expected and len(changed) == 2
    x = images()[0]
    for placed in network_sites(full):
        placed.quantizer.forward = lambda t: t
    with torch.no_grad():
        error = (net(x) - full(x)).square().mean() / full(x).var()
    assert error < 1e-2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "ToySmoth"}, r"ptq\.type: unknown post-training method 'ToySmoth' \(did you mean 'ToySmooth'\?\)"),
        ({"type": "ToySmooth", "alhpa": 0.5}, r"unknown key for ToySmooth 'alhpa' \(did you mean 'alpha'\?\)"),
        ({"type": "ToySmooth", "alpha": 2}, r"ptq\.alpha: expected a number in \[0, 1\], got 2"),
        ({"alpha": 0.5}, "expected a mapping with 'type'"),
        ({"type": ["ToySmooth"]}, r"ptq\.type: unknown post-training method \['ToySmooth'\]"),
        ({"type": {}}, r"ptq\.type: unknown post-training method \{\}"),
        ({"type": "SPR2Q", "rank": 2.7}, r"ptq\.rank: expected a whole number, got 2\.7"),
    ],
    ids=["method", "option", "value", "type", "list", "section", "fraction"],
)
def test_mistakes_in_options_are_named(config, message):
    with pytest.raises(SpecError, match=message):
        build_method(config)


@pytest.mark.parametrize("name", sorted(PTQ_METHODS))
def test_numbers_that_count_are_whole(name):
    for key, option in PTQ_METHODS[name].options.items():
        if type(option.default) is not int:
            continue
        assert build_method({"type": name, key: float(option.default)}).settings[key] == option.default
        with pytest.raises(SpecError, match=f"{key}: expected a whole number"):
            build_method({"type": name, key: max(option.low, 1) + 0.5})


@pytest.mark.parametrize("iterations", [-1, 2.5, True])
@pytest.mark.parametrize("name", sorted(name for name, method in PTQ_METHODS.items() if method.trains))
def test_iterations_that_are_none_are_refused_before_anything_is_calibrated(name, iterations, monkeypatch):
    monkeypatch.setattr(PTQ_METHODS[name], "calibrate", None)
    with pytest.raises(ValueError, match=f"{name}: iterations must be a whole number, at least 0; got {iterations}"):
        quantize(network(), build_method({"type": name}), images(), iterations)


def test_all_mistakes_are_named_at_once():
    with pytest.raises(SpecError, match=r"(?s)'alhpa'.*ptq\.percent"):
        build_method({"type": "ToySmooth", "alhpa": 0.5, "percent": 10})


class LeavesTransform(PTQMethod):
    """Attaches and does not take away."""

    def apply(self, net, batches):
        place = next(iter(places(net)))
        attach(net, {place: Smoothing(torch.ones(places(net)[place].layout.channels))})


class LeavesQuantizers(PTQMethod):
    """Calibrates nothing."""

    def apply(self, net, batches):
        return None


class AddsState(PTQMethod):
    """Leaves a buffer behind."""

    def apply(self, net, batches):
        build_method({"type": "ToySmooth"}).apply(net, batches)
        net.register_buffer("remark", torch.zeros(1))


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (LeavesTransform, ValueError, "LeavesTransform left a transform at layers"),
        (LeavesQuantizers, UncalibratedError, "never calibrated"),
        (AddsState, ValueError, "AddsState changed what a checkpoint holds, first remark"),
    ],
    ids=["transform", "quantizers", "state"],
)
def test_what_is_no_ordinary_network_is_refused(method, error, message):
    with pytest.raises(error, match=message):
        quantize(network(), method(), images())


def test_no_batch_and_a_name_that_is_taken_are_refused():
    with pytest.raises(ValueError, match="ToySmooth: there was no batch"):
        quantize(network(), build_method({"type": "ToySmooth"}), [])
    with pytest.raises(ValueError, match="ToySmooth is registered already"):
        register_method(type("ToySmooth", (PTQMethod,), {}))
