"""QMambaIRv2: which sites are quantized, what stays, and the official weights inside."""

from __future__ import annotations

import re

import pytest
import torch
from basicsr.archs import build_network
from torch import nn

from qmambair_basicsr.archs.routing import pick_policy
from qmambair_basicsr.archs.ss2d import ScanParameters
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import load_fp_state
from qmambair_basicsr.layers import QuantConv2d, QuantEmbedding, QuantLinear, QuantMatMul, placement
from qmambair_basicsr.layers.matmul import MatMul
from qmambair_basicsr.layers.sites import quantizers_of
from qmambair_basicsr.quantizers import SpecError

BODY = {"embed_dim": 12, "d_state": 3, "num_heads": [2, 2], "window_size": 4, "inner_rank": 5, "num_tokens": 8}
NET = {**BODY, "depths": [2, 1], "mlp_ratio": 1.0, "upscale": 2, "upsampler": "pixelshuffledirect"}
QUANT = {
    "weight": {"type": "RFA", "bits": 4},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
}
EXTRA = {"attention": {"type": "MinMax", "bits": 8}, "routing": {"type": "MinMax", "bits": 8}}
LAYER = r"layers\.\d+\.residual_group\.layers\.\d+\."
QUANTIZED = re.compile(
    rf"{LAYER}(wqkv|win_mhsa\.proj|convffn[12]\.(fc[12]|sg\.conv|dwconv\.depthwise_conv\.0)"
    r"|assm\.(in_proj\.0|CPE\.0|out_proj))|layers\.\d+\.conv"
)
ROUTING = re.compile(rf"{LAYER}(assm\.route\.[02]|assm\.embeddingB|embeddingA)")


def build(arch="QMambaIRv2Light", **quant):
    return build_network({"type": arch, **NET, "quant": {**QUANT, **quant}})


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("arch", ["MambaIRv2", "MambaIRv2Light"])
def test_every_site_and_nothing_else(arch, extra):
    full = build_network({"type": arch, **NET})
    net = build(f"Q{arch}", **(EXTRA if extra else {}))
    swapped = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d, nn.Embedding: QuantEmbedding, MatMul: QuantMatMul}
    quantized = 0
    for path, module in full.named_modules():
        twin = net.get_submodule(path)
        if QUANTIZED.fullmatch(path):
            assert type(twin) is swapped[type(module)], path
            assert type(twin.weight_quantizer).__name__ == "RFA"
            expected = "DLS" if path.endswith("out_proj") else "LSQOffset"
            assert type(twin.act_quantizer).__name__ == expected, path
            quantized += 1
        elif isinstance(module, ScanParameters):
            kinds = {site: type(quantizer).__name__ for site, quantizer in twin.quantizers.items()}
            assert {kinds[site] for site in ("u", "delta", "A", "B", "C", "D", "dt_bias")} == {"DLS"}
            assert {kinds[site] for site in kinds if site.endswith("weight")} == {"RFA"}
        elif extra and (ROUTING.fullmatch(path) or type(module) is MatMul):
            assert type(twin) is swapped[type(module)], path
        else:
            assert type(twin) is type(module) or path == "", path
    assert quantized == 3 * (2 + 2 * 3 + 3) + 2
    names = tuple(f"{name}." for name in quantizers_of(net))
    assert {key for key in net.state_dict() if not key.startswith(names)} == set(full.state_dict())


@pytest.mark.parametrize("arch", ["MambaIRv2", "MambaIRv2Light"])
def test_32_bits_equal_full_precision(arch):
    full = build_network({"type": arch, **NET}).eval()
    exact = {site: {"type": "Identity"} for site in ("weight", "act", "scan", "attention", "routing")}
    net = build(f"Q{arch}", **exact).eval()
    load_fp_state(net, full.state_dict())
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(x), full(x), rtol=1e-5, atol=1e-5)


def test_more_bits_come_closer_to_full_precision():
    full = build_network({"type": "MambaIRv2Light", **NET, "eval_routing": "argmax"}).eval()
    x = torch.rand(2, 3, 12, 8)
    errors = []
    for bits in (3, 5, 8):
        quant = {site: {"type": "MinMax", "bits": bits} for site in ("weight", "act", "scan", "attention", "routing")}
        net = build_network({"type": "QMambaIRv2Light", **NET, "eval_routing": "argmax", "quant": quant})
        load_fp_state(net, full.state_dict())
        calibrate(net, [x]).eval()
        with torch.no_grad():
            errors.append((net(x) - full(x)).abs().mean().item())
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("extra", [False, True])
def test_calibrated_network_trains_every_parameter(extra):
    learned = {site: {"type": "LSQ", "bits": 4} for site in EXTRA} if extra else {}
    net = calibrate(build(**learned), [torch.rand(2, 3, 8, 8)]).train()
    net(torch.rand(2, 3, 8, 8)).square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None]
    assert idle == []
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("routing", ["gumbel", "argmax"])
def test_same_image_same_result(routing):
    quant = {**QUANT, **EXTRA}
    net = build_network({"type": "QMambaIRv2Light", **NET, "eval_routing": routing, "quant": quant})
    images = torch.rand(2, 3, 8, 8)
    calibrate(net, [images]).eval()
    with torch.no_grad():
        once = net(images)
        assert torch.equal(once, net(images))
        for index in range(2):
            assert torch.equal(net(images[index : index + 1])[0], once[index])


def test_calibration_sees_whole_batches():
    net = build()
    seen = []
    scan = net.layers[0].residual_group.layers[0].assm.selectiveScan
    scan.quantizers["u"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[0]))
    calibrate(net, [torch.rand(3, 3, 8, 8)]).eval()
    with torch.no_grad():
        net(torch.rand(2, 3, 8, 8))
    assert seen == [3, 1, 1]


def test_overrides_reach_attention_operands():
    net = build(attention={"type": "MinMax", "bits": 8}, overrides={"*.map": {"attention": {"type": "LSQ", "bits": 4}}})
    attention = net.layers[0].residual_group.layers[0].win_mhsa
    assert type(attention.av_matmul.left_quantizer).__name__ == "LSQ"
    assert type(attention.av_matmul.right_quantizer).__name__ == "MinMax"
    assert type(attention.qk_matmul.left_quantizer).__name__ == "MinMax"


def test_attention_of_a_network_without_it_is_refused():
    with pytest.raises(SpecError, match=r"quant\.attention: QMambaIR has no such sites"):
        build_network({"type": "QMambaIR", "embed_dim": 30, "depths": [1], "quant": {**QUANT, **EXTRA}})


def test_hard_policy_passes_the_gradient_to_the_soft_one():
    scores = torch.randn(1, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 4, 5, dtype=torch.float64)
    picked, policy = pick_policy(scores)
    (grad,) = torch.autograd.grad((policy * weight).sum(), scores)
    assert torch.equal(policy.argmax(-1), picked)
    assert torch.equal(policy.sum(-1), torch.ones(1, 4, dtype=torch.float64))
    torch.testing.assert_close(grad, torch.autograd.grad((scores.softmax(-1) * weight).sum(), scores)[0])


def test_placement_counts_every_parameter_once():
    net = build(**EXTRA)
    rows = placement(net)
    own = sum(p.numel() for name, p in net.named_parameters() if not name.startswith(tuple(quantizers_of(net))))
    assert sum(row.quantized + row.full_precision for row in rows) == own
    table = {row.module: row for row in rows}
    layer = "layers.0.residual_group.layers.0"
    assert table[f"{layer}.assm.embeddingB"].weight_bits == 8
    assert table[f"{layer}.win_mhsa.av_matmul.map"].act == "MinMax"
