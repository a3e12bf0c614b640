"""Prompt look-up and token permutation against plain formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from basicsr.archs import build_network
from torch import nn

from qmambair_basicsr.archs.mambairv2_blocks import ASSM
from qmambair_basicsr.archs.routing import (
    NEAR,
    RoutingNoise,
    decide,
    pick_policy,
    pick_prompt,
)
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.ops.permutation import flat_order, permute_tokens
from qmambair_basicsr.ops.semantic_order import semantic_order


def test_pick_prompt_equals_hard_gumbel_softmax():
    scores = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    table = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 7, 3, dtype=torch.float64)
    picked, prompt = pick_prompt(scores, table)
    grads = torch.autograd.grad((prompt * weight).sum(), (scores, table))

    soft = scores.softmax(-1)
    hard = torch.nn.functional.one_hot(scores.argmax(-1), 5).double()
    expected = (hard - soft.detach() + soft) @ table
    torch.testing.assert_close(prompt, expected)
    torch.testing.assert_close(grads, torch.autograd.grad((expected * weight).sum(), (scores, table)))
    assert torch.equal(picked, scores.argmax(-1))


def test_pick_without_straight_through_is_a_constant():
    scores = torch.randn(1, 4, 5, requires_grad=True)
    table = torch.randn(5, 3, requires_grad=True)
    pick_prompt(scores, table, noisy=False)[1].sum().backward()
    assert scores.grad is None
    assert table.grad is not None


def test_permute_and_back_with_gradient():
    x = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    order = torch.stack([torch.randperm(6) for _ in range(3)])
    forward, inverse = flat_order(order)
    out = permute_tokens(x, forward, inverse)
    assert torch.equal(out, x.gather(1, order.unsqueeze(-1).expand_as(x)))
    assert torch.equal(permute_tokens(out, inverse, forward), x)
    assert torch.autograd.gradcheck(lambda t: permute_tokens(t, forward, inverse), x)


def test_semantic_order_is_stable():
    picked = torch.tensor([[2, 0, 2, 1, 0, 2]])
    order, inverse = semantic_order(picked, 3)
    assert order.tolist() == [1, 4, 3, 0, 2, 5]
    assert inverse[order].tolist() == list(range(6))


def test_noise_is_standard_gumbel():
    noise = RoutingNoise(False, "gumbel", 3, torch.device("cpu")).add_to(torch.zeros(4, 20000, 2))
    assert noise.shape == (4, 20000, 2)
    assert torch.equal(noise[0], noise[3])
    assert abs(noise[0].mean().item() - 0.5772) < 0.02
    assert abs(noise[0].std().item() - 1.2825) < 0.02


TIES = [  # logits of one token and the prompt they mean
    ([1.0, 3.0, 2.0], 1),
    ([1.0, 3.0, 3.0], 1),
    ([1.0, 3.0, 3.0 * (1 + NEAR / 2)], 1),  # the last one is larger, by less than counts
    ([1.0, 3.0, 3.0 * (1 + 2 * NEAR)], 2),
    ([-100.0, 1.0, 1.0 + 50 * NEAR], 1),  # the unit is the largest magnitude, whatever its sign
    ([3.0, 3.0 * (1 + 0.7 * NEAR), 3.0 * (1 + 1.4 * NEAR)], 1),  # a chain: the first is near to the second only
    ([-5.0, 0.0, 0.0], 1),
    ([0.0, 0.0, 0.0], 0),
    ([-2.0, -1.0, -1.0], 1),
    ([-math.inf, -1.0, 2.0], 0),  # no unit to measure in
    ([-math.inf, -math.inf, -math.inf], 0),
    ([1.0, math.nan, 3.0], 0),
    ([1.0, math.inf, math.inf], 0),
    ([-3e38, 3e38, 3e38], 1),
    ([0.0, 1e-45, 0.0], 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_lowest_index(dtype):
    scores = torch.tensor([[row for row, _ in TIES]], dtype=torch.float64).to(dtype)
    assert decide(scores).tolist() == [[wanted for _, wanted in TIES]]
    for picked, policy in (
        pick_prompt(scores, torch.eye(3, dtype=dtype), noisy=False),
        pick_policy(scores, noisy=False),
    ):
        assert torch.equal(picked, decide(scores)) and torch.equal(policy.argmax(-1), picked)
    assert torch.equal(decide(scores[..., :1]), torch.zeros(1, len(TIES), dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exported_graph_has_the_rule(dtype, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra: export")
    pytest.importorskip("onnxscript", reason="extra: export")

    class Rule(nn.Module):
        def forward(self, scores):
            return decide(scores)

    scores = torch.tensor([[row for row, _ in TIES]], dtype=torch.float64).to(dtype)
    path = str(tmp_path / "rule.onnx")
    torch.onnx.export(Rule(), (torch.rand_like(scores),), path, dynamo=True, opset_version=18, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: scores.numpy()})[0])
    defined = ~scores.isnan().any(-1)  # what a runtime's maximum makes of NaN is its own affair
    assert torch.equal(got[defined], decide(scores)[defined])
    assert got.amin() >= 0 and got.amax() < 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_types_tie_where_they_are_equal(dtype):
    scores = torch.randn(1, 4000, 64).to(dtype)
    first = (scores == scores.amax(-1, keepdim=True)).float().argmax(-1)
    assert (scores == scores.amax(-1, keepdim=True)).sum(-1).amax() > 1, "no tie among the cases"
    assert torch.equal(decide(scores), first)


def test_away_from_ties_the_largest_is_picked():
    scores = torch.randn(3, 2000, 64)
    assert torch.equal(pick_policy(scores)[0], scores.argmax(-1)), "noise decides"
    top = scores.topk(2).values
    clear = top[..., 0] - top[..., 1] > 2 * NEAR * scores.abs().amax(-1)
    assert clear.float().mean() > 0.99
    assert torch.equal(decide(scores)[clear], scores.argmax(-1)[clear])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantized_logits_are_decided_on_their_codes(dtype):
    """Sums of products of 4-bit codes, added up in two orders after their scale: what whole numbers would decide."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-8, 8, (4000, 16), generator=generator)
    w = torch.randint(-8, 8, (16, 32), generator=generator)
    exact = x @ w
    wanted = (exact == exact.amax(-1, keepdim=True)).float().argmax(-1)
    steps = 0.1 / 3, 0.7 / 3
    differ = 0
    for order in (torch.arange(16), torch.arange(15, -1, -1)):
        scores = torch.zeros(4000, 32, dtype=dtype)
        for i in order.tolist():
            scores += (x[:, i : i + 1].to(dtype) * steps[0]) * (w[i].to(dtype) * steps[1])
        differ += int((scores.argmax(-1) != wanted).sum())
        assert torch.equal(decide(scores.unsqueeze(0))[0], wanted)
    assert differ, "the largest of these sums is always the first of equal ones: the test shows nothing"


def reordered(net: nn.Module) -> nn.Module:
    """The same network, whose routing logits are added up in another order: its hidden channels are permuted."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, ASSM):
            first, last = module.route[0], module.route[2]
            order = torch.arange(first.out_features - 1, -1, -1)
            first.weight.data, first.bias.data = first.weight.data[order], first.bias.data[order]
            last.weight.data = last.weight.data[:, order]
    return net


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_no_order_of_sums_decides_a_tie(precision, monkeypatch):
    """Another BLAS adds up in another order: every token still picks the same prompt."""
    options = {"upscale": 2, "upsampler": "pixelshuffledirect", "depths": [1], "num_heads": [2], "embed_dim": 48}
    options |= {"d_state": 2, "window_size": 8, "inner_rank": 3, "num_tokens": 64, "mlp_ratio": 1.0}
    linear = {"type": "LSQ", "bits": 4}
    net = build_network({"type": "QMambaIRv2Light", **options, "eval_routing": "argmax", "quant": {"routing": linear}})
    image = torch.rand(1, 3, 48, 48)
    calibrate(net, [image])
    net = net.to(precision).eval()
    for name, parameter in net.named_parameters():
        if ".route." in name:
            parameter.data.mul_(1 / 0.9)  # steps of full length: products of shorter ones are exact in float64
    scores, outputs = [], []
    for variant in (net, reordered(net)):
        for module in variant.modules():
            if isinstance(module, ASSM):
                # a plain loop in place of this machine's BLAS, so that the order is known
                monkeypatch.setattr(module.route[2], "forward", in_order(module.route[2]))
                module.route.register_forward_hook(lambda _, __, logits: scores.append(logits))
        with torch.no_grad():
            outputs.append(variant(image.to(precision)))
    assert (scores[0].argmax(-1) != scores[1].argmax(-1)).any(), "no tie among the logits: the test shows nothing"
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12 if precision is torch.float64 else 1e-6)


def in_order(layer):
    """Forward of a quantized linear that adds one channel after the other."""

    def forward(x):
        x, weight = layer.act_quantizer(x), layer.quantized_weight()
        total = torch.zeros(*x.shape[:-1], weight.shape[0], dtype=x.dtype)
        for i in range(weight.shape[1]):
            total += x[..., i : i + 1] * weight[:, i]
        return total + layer.bias

    return forward
