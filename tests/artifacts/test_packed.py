"""Packed checkpoints: identical codes and outputs, sizes, and refusal of files that cannot be trusted."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network

import qmambair_basicsr  # noqa: F401  (registers the networks)
from qmambair_basicsr.artifacts.packed import PackedCheckpointError, load_packed, pack_codes, save_packed, unpack_codes
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import NonFiniteWeightsError
from qmambair_basicsr.layers.convert import FixedGrid, FrozenCodes, freeze_dls, freeze_parameters
from qmambair_basicsr.layers.sites import parameter_sites, quantizers_of
from qmambair_basicsr.quantizers import UncalibratedError

safetensors = pytest.importorskip("safetensors.torch")


def description(bits, weight="RFA", scan=None, **changes):
    quant = {
        "weight": {"type": weight, "bits": bits},
        "act": {"type": "LSQOffset", "bits": bits},
        "scan": {"type": "DLS", "bits": bits, **(scan or {})},
    }
    options = {"embed_dim": 32, "depths": [1], "d_state": 4, "mlp_ratio": 1.0, "upscale": 2}
    return {"type": "QMambaIR", "upsampler": "pixelshuffledirect", **options, "quant": quant, **changes}


def calibrated(network):
    torch.manual_seed(0)
    net = build_network(copy.deepcopy(network)).eval()
    calibrate(net, [torch.rand(1, network.get("in_chans", 3), 8, 8)])
    with torch.no_grad():  # away from the initial values, as after training
        for name, parameter in net.named_parameters():
            if name.endswith(("offset", "thresholds")):
                parameter.add_(0.05 * torch.randn_like(parameter) * parameter.abs().mean().clamp_min(0.1))
    return net


V2 = {
    "type": "QMambaIRv2Light",
    "depths": [1],
    "num_heads": [2],
    "embed_dim": 24,
    "window_size": 8,
    "inner_rank": 4,
    "num_tokens": 8,
    "eval_routing": "argmax",
}
CASES = {
    "w2": description(2),
    "w4": description(4),
    "w3 per channel": description(3, weight="MinMax"),
    "official": description(4, scan={"mode": "official"}),
    "mambairv2": description(4) | V2,
}


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_survive_packing(bits):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, 11), generator=torch.Generator().manual_seed(bits))
    packed = pack_codes(codes, bits)
    assert packed.numel() == -(-77 * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, (7, 11)), codes.to(torch.int8))
    extremes = torch.tensor([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1], dtype=torch.int8)  # int8 cannot hold 128
    assert torch.equal(unpack_codes(pack_codes(extremes, bits), bits, (2,)), extremes)


def test_codes_that_do_not_fit_are_refused():
    for wrong in ([4], [-5], [300], [2**40]):
        with pytest.raises(ValueError, match="do not fit in 3 bits"):
            pack_codes(torch.tensor(wrong), 3)
    for bits in (0, 9, -1, 2.0, True, None):
        for call in (lambda: pack_codes(torch.zeros(1), bits), lambda: unpack_codes(torch.zeros(1).byte(), bits, (1,))):  # noqa: B023
            with pytest.raises(ValueError, match="codes have 1 to 8 bits"):
                call()


def test_two_bits_are_four_codes_a_byte():
    assert pack_codes(torch.tensor([-2, -1, 0, 1]), 2).tolist() == [0b11_10_01_00]


@pytest.mark.parametrize("case", CASES)
def test_loaded_network_is_the_saved_one(case, tmp_path):
    net = calibrated(CASES[case])
    x = torch.rand(1, 3, 8, 11)
    with torch.no_grad():
        wanted = net(x)
    codes = {site.name: site.quantizer.to_int(site.tensor()) for site in parameter_sites(net)}
    report = save_packed(net, CASES[case], tmp_path / "net.safetensors")
    assert report.file == (tmp_path / "net.safetensors").stat().st_size
    loaded = load_packed(tmp_path / "net.safetensors")
    sites = {site.name: site for site in parameter_sites(loaded)}
    assert sites.keys() == codes.keys()
    for name, expected in codes.items():
        assert isinstance(sites[name].quantizer, FrozenCodes)
        for ours, theirs in zip(sites[name].quantizer.to_int(sites[name].tensor()), expected, strict=True):
            assert torch.equal(ours, theirs), name
    with torch.no_grad():
        assert torch.equal(loaded(x), wanted)


@pytest.mark.parametrize(("bits", "least"), [(2, 5.0), (4, 4.0)])
def test_light_network_is_small_enough(bits, least, tmp_path):
    network = description(bits, embed_dim=60, depths=[6, 6, 6, 6], d_state=10, mlp_ratio=1.2)
    net = build_network(copy.deepcopy(network)).eval()
    for quantizer in quantizers_of(net).values():  # sizes do not depend on values
        quantizer.initialized.fill_(True)
    report = save_packed(net, network, tmp_path / "net.safetensors")
    assert report.fp32 == 4 * sum(p.numel() for p in _full_precision_twin(network).parameters())
    assert report.ratio >= least, report


def _full_precision_twin(network):
    options = {k: v for k, v in network.items() if k != "quant"} | {"type": "MambaIR"}
    with torch.device("meta"):
        return build_network(options)


def test_frozen_dls_uses_the_mean_grid_of_the_calibration_images():
    net = calibrated(description(4))
    images = [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)]
    seen = []
    name = "layers.0.residual_group.blocks.0.self_attention.quantizers.u"
    handle = net.get_submodule(name).register_forward_pre_hook(lambda m, x: seen.append(m.to_int(x[0])[1].flatten()[0]))
    with torch.no_grad():
        for image in images:
            net(image)
    handle.remove()
    replaced = freeze_dls(net, images)
    assert name in replaced
    fixed = net.get_submodule(name)
    assert isinstance(fixed, FixedGrid)
    torch.testing.assert_close(fixed.grid[0], torch.stack(seen).mean())
    x = torch.randn(2, 4, 4, 32)
    codes, scale, zero = fixed.to_int(x)
    assert torch.equal((codes - zero) * scale, fixed(x))


def test_freezing_dls_records_no_gradients():
    """A deep network's intermediate tensors of a whole image would fill the memory."""
    modes = []
    freeze_dls(
        calibrated(description(4)),
        [0],
        lambda net, _: modes.append((torch.is_grad_enabled(), net(torch.rand(1, 3, 8, 8)))),
    )
    assert [mode for mode, _ in modes] == [False]


def test_uncalibrated_network_is_refused():
    with pytest.raises(UncalibratedError, match="never calibrated"):
        freeze_parameters(build_network(description(2)))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    save_packed(calibrated(CASES["w2"]), CASES["w2"], path)
    return path


def rewritten(source, target, tensors=None, metadata=None):
    with safetensors.safe_open(str(source), framework="pt") as file:
        content, facts = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    safetensors.save_file(content | (tensors or {}), str(target), facts | (metadata or {}))
    return target


def content_of(path):
    with safetensors.safe_open(str(path), framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def test_file_of_the_first_format_is_read_and_written_as_it_was(tmp_path):
    """Written by the package before codes had kinds: 2 to 4 bits, scales per channel, bounds of DLS in official mode."""
    stored = Path(__file__).parents[1] / "data" / "artifacts" / "packed_version1.safetensors"
    tensors, metadata = content_of(stored)
    loaded = load_packed(stored)
    assert sum(site.quantizer.bounds is not None for site in parameter_sites(loaded)) >= 3
    report = save_packed(loaded, json.loads(metadata["network"]), tmp_path / "again.safetensors")
    again, described = content_of(tmp_path / "again.safetensors")
    assert described == metadata and again.keys() == tensors.keys() and report.file == stored.stat().st_size
    assert all(torch.equal(again[key], tensor) and again[key].dtype == tensor.dtype for key, tensor in tensors.items())


def test_newer_version_is_refused(packed, tmp_path):
    newer = rewritten(packed, tmp_path / "newer.safetensors", metadata={"version": "3"})
    with pytest.raises(PackedCheckpointError, match=r"format version .3.*update the package"):
        load_packed(newer)


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_truncated_file_is_refused(packed, tmp_path, keep):
    short = tmp_path / "short.safetensors"
    short.write_bytes(packed.read_bytes()[:keep])
    with pytest.raises(PackedCheckpointError, match="damaged"):
        load_packed(short)


def test_changed_tensor_is_refused(packed, tmp_path):
    changed = rewritten(packed, tmp_path / "changed.safetensors", tensors={"conv_first.bias": torch.zeros(32)})
    with pytest.raises(PackedCheckpointError, match="checksum"):
        load_packed(changed)


@pytest.mark.parametrize(
    "network", [{"type": "Nonsense"}, [], {"type": "QMambaIR"}, description(2, depths=[2]), description(4)]
)
def test_other_network_in_the_header_is_refused(packed, tmp_path, network):
    other = rewritten(packed, tmp_path / "other.safetensors", metadata={"network": json.dumps(network)})
    with pytest.raises(PackedCheckpointError, match=r"other\.safetensors"):
        load_packed(other)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_packed_nan_is_named(tmp_path, value):
    """Every command that opens the file would compute nonsense with it."""
    network = description(4)
    net = calibrated(network)
    with torch.no_grad():
        net.conv_first.bias[0] = value
    save_packed(net, network, tmp_path / "bad.safetensors")
    with pytest.raises(NonFiniteWeightsError, match=r"bad\.safetensors: conv_first\.bias holds NaN or infinity"):
        load_packed(tmp_path / "bad.safetensors")


def test_foreign_safetensors_file_is_refused(tmp_path):
    safetensors.save_file({"a": torch.zeros(3)}, str(tmp_path / "foreign.safetensors"))
    with pytest.raises(PackedCheckpointError, match="no packed checkpoint"):
        load_packed(tmp_path / "foreign.safetensors")
