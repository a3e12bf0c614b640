"""Every registered network exports, and onnxruntime computes what PyTorch does; sizes left open; FP16."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from test_export_onnx import photo
from tiny_networks import OURS, QUANTIZED, described

from qmambair_basicsr.archs.windows import open_window_plan, window_plan
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.info import full_precision_twin, network_info
from qmambair_basicsr.layers.transforms import transforms_of
from qmambair_basicsr.ops.backend import exporting
from qmambair_basicsr.ops.semantic_order import semantic_order

pytest.importorskip("onnxruntime", reason="extra: export")

from qmambair_basicsr.artifacts.onnx.codes import compare_activations, compare_weights
from qmambair_basicsr.artifacts.onnx.errors import ExportError
from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx
from qmambair_basicsr.artifacts.onnx.runtime import OnnxNetwork, read_model

LIGHT = {"depths": [1], "d_state": 2, "mlp_ratio": 1.0, "upscale": 2, "upsampler": "pixelshuffledirect"}
V2 = {"embed_dim": 12, "num_heads": [2], "window_size": 8, "inner_rank": 3, "num_tokens": 5, "eval_routing": "argmax"}
DEEPEST = {"dim": 4, "num_blocks": [0, 0, 0, 1], "num_refinement_blocks": 0}
HEADS = {"scan_type": "diagonal", "scan_count": 4, "d_state": 2}
OPTIONS = {
    "MambaIR": {**LIGHT, "embed_dim": 30, "upsampler": "pixelshuffle", "in_chans": 1},
    "MambaIRUNet": {"dim": 30, "num_blocks": [0, 0, 0, 1], "num_refinement_blocks": 0, "d_state": 1, "mlp_ratio": 1.0},
    "MaIR": {**LIGHT, "embed_dim": 8, "depths": [2], "ssm_ratio": 1.0, "scan_len": 4},
    "MaIRUNet": {"dim": 4, "num_blocks": [0, 0, 0, 1], "num_refinement_blocks": 0, "ssm_ratio": 1.0, "scan_len": 4},
    "EAMamba": {"dim": 4, "num_blocks": [0, 0, 0, 1], "num_refinement_blocks": 0, "upscale": 1, "mamba_cfg": HEADS},
    "EAMambaSR": {"dim": 8, "num_blocks": [1], "upscale": 3, "mamba_cfg": {**HEADS, "scan_merge_method": "add"}},
    **dict.fromkeys(("VmambaIR", "MambaSISR6", "MambaRealSR11", "Mamber32", "Mamber33"), DEEPEST),
    "SwinIR": {
        **{key: LIGHT[key] for key in LIGHT if key != "d_state"},
        "embed_dim": 12,
        "num_heads": [2],
        "window_size": 8,
    },
    "EDSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2},
    "MambaIRv2": {**LIGHT, **V2, "depths": [2], "upsampler": ""} | {"upscale": 1},
    "MambaIRv2Light": {**LIGHT, **V2},
}
OPEN_SIDES = ("EAMambaSR", "MaIR", "MambaIRv2", "QMambaIRv2Light")
QUANT = {
    "weight": {"type": "LSQ", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
}
V2_QUANT = {**QUANT, "attention": {"type": "LSQOffset", "bits": 8}, "routing": {"type": "LSQ", "bits": 8}}


def network(name):
    """A tiny network of a registered type; quantized ones are calibrated, on inputs as they come."""
    torch.manual_seed(0)
    options = copy.deepcopy(OPTIONS[full_precision_twin(name) or name])
    if name in QUANTIZED and "depths" in options:
        options["depths"] = [1]  # shifted windows, in the second layer, are not quantized in another way
    net = build_network(described(name, options, V2_QUANT)).eval()
    if name in QUANTIZED:
        calibrate(net, [photo(network_info(net).channels, 16, 24)])
    return net


def assert_same(got, wanted, least=50):
    error = np.mean((got.astype(np.float64) - wanted.astype(np.float64)) ** 2)
    assert got.shape == wanted.shape and -10 * np.log10(error + 1e-20) >= least


@pytest.mark.parametrize("name", OURS)
def test_every_registered_network_exports(name, tmp_path):
    net = network(name)
    channels = network_info(net).channels
    x = photo(channels, 16, 24)
    open_sides = name in OPEN_SIDES
    model = export_onnx(net, tmp_path / "net.onnx", ExportSettings(16, 24, dynamic=open_sides, scan_chunk=4))
    onnx_net = OnnxNetwork(tmp_path / "net.onnx")
    with torch.no_grad():
        assert_same(onnx_net(x).numpy(), net(x).numpy())
        if open_sides:  # one and several windows, sides that are no multiples of a window
            for size in ((8, 8), (19, 37)):
                x = photo(channels, *size)
                assert_same(onnx_net(x).numpy(), net(x).numpy())
    assert int(onnx_net.facts["scale"]) == network_info(net).scale and onnx_net.facts["arch"] == name
    weights = compare_weights(model, net)
    assert all(check.equal is not False for check in weights)
    if name in QUANTIZED:
        assert all("embedding" in check.name for check in weights if check.stored == "folded"), (
            "only a dictionary is folded"
        )
        checks = compare_activations(tmp_path / "net.onnx", net, x)
        assert all(check.own_input in (None, check.count) for check in checks)
        assert sum(check.whole_network for check in checks) >= 0.97 * sum(check.count for check in checks)
    assert (onnx_net.size is None) == open_sides


def finer(**changes):
    """A small network on the grids of ``changes``."""
    torch.manual_seed(0)
    options = copy.deepcopy(OPTIONS["MambaIR"]) | {"embed_dim": 32}
    quant = {kind: V2_QUANT[kind] | changes.get(kind, {}) for kind in ("weight", "act", "scan")}
    net = build_network({"type": "QMambaIR", **options, "quant": {**changes, **quant}}).eval()
    calibrate(net, [photo(network_info(net).channels, 16, 24)])
    return net


def test_half_integers_behind_rotations(tmp_path):
    """The rotation is a product with a constant in front of QuantizeLinear; the weights are int8."""
    seq = {"type": "SEQ", "bits": 2, "granularity": "channel"}
    net = finer(weight=seq, transforms={"Hadamard": {"block": 16}, "LowRank": {"rank": 2}})
    assert sum(transform.changes_input for transform in transforms_of(net).values()) > 2
    x = photo(network_info(net).channels, 16, 24)
    model = export_onnx(net, tmp_path / "net.onnx", ExportSettings(16, 24, scan_chunk=4))
    with torch.no_grad():
        assert_same(OnnxNetwork(tmp_path / "net.onnx")(x).numpy(), net(x).numpy())
    assert all(check.equal is not False for check in compare_weights(model, net))
    checks = compare_activations(tmp_path / "net.onnx", net, x)
    assert all(check.own_input in (None, check.count) for check in checks)


@pytest.mark.parametrize("kind", ["weight", "act"])
def test_groups_are_refused(kind, tmp_path):
    net = finer(**{kind: {"type": "LSQ", "bits": 4, "granularity": "group16"}})
    with pytest.raises(ExportError, match=r"steps for groups of channels.*granularity: channel"):
        export_onnx(net, tmp_path / "net.onnx", ExportSettings(16, 24))
    assert not list(tmp_path.iterdir())


def test_random_routing_is_refused(tmp_path):
    net = build_network({"type": "MambaIRv2Light", **OPTIONS["MambaIRv2Light"], "eval_routing": "gumbel"})
    with pytest.raises(ExportError, match="eval_routing: argmax"):
        export_onnx(net, tmp_path / "net.onnx", ExportSettings(16, 16))


@pytest.mark.parametrize("prompts", [1, 3, 64])
def test_counting_sort_is_the_stable_sort(prompts):
    picked = torch.randint(prompts, (1, 640))
    with exporting():
        counted = semantic_order(picked, prompts, 64)
    for got, wanted in zip(counted, semantic_order(picked, prompts), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("height", "width", "shift"), [(8, 8, 4), (8, 24, 4), (24, 16, 4), (16, 24, 0)])
def test_window_plan_for_open_sides_masks_the_same_pairs(height, width, shift):
    plans = [make(height, width, 8, shift, torch.device("cpu")) for make in (window_plan, open_window_plan)]
    masks = []
    for plan in plans:
        assert torch.equal(plan.order[plan.inverse], torch.arange(height * width))
        allowed = torch.zeros(height * width, height * width)
        start = 0
        for count, mask in plan.kinds:
            for i in range(count):
                tokens = plan.order[start : start + 64]
                pair = torch.zeros(64, 64) if mask is None else (mask if mask.ndim == 2 else mask[i, 0])
                allowed[tokens.unsqueeze(1), tokens.unsqueeze(0)] = 1 + (pair < 0).float()
                start += 64
        masks.append(allowed)
    assert torch.equal(*masks)


def test_half_precision(exported_case):
    """FP16 outside the quantized layers: same codes for the same input, close outputs, FP32 at both ends."""
    net, path = exported_case("light x2 w4a4", "frozen", "fp16")
    x, model, onnx_net = photo(3, 16, 24), read_model(path), OnnxNetwork(path)
    with torch.no_grad():
        assert_same(onnx_net(x).numpy(), net(x).numpy(), 45)
    assert onnx_net.facts["precision"] == "fp16"
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds["conv_first.weight"] == 10 and kinds["layers.0.conv.act.step"] == 1
    assert all(kind != 10 for name, kind in kinds.items() if "SS2DScan" in name), "the scan stays FP32"
    assert all(check.equal for check in compare_weights(model, net))
    checks = compare_activations(path, net, x)
    assert all(check.own_input == check.count for check in checks)
    assert sum(check.whole_network for check in checks) >= 0.97 * sum(check.count for check in checks)
