"""Methods and building blocks against vectors that the authors' code computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from golden_cases import cases, far

from qmambair_basicsr import checkpoints
from qmambair_basicsr.layers.transforms import Layout, transforms_of
from qmambair_basicsr.ptq import build_method
from qmambair_basicsr.ptq.adaround import AdaRound, beta, inverse, rectified, regulariser, rounded
from qmambair_basicsr.ptq.aphq_vit import perturbed_importance
from qmambair_basicsr.ptq.blockwise import dropped
from qmambair_basicsr.ptq.bounds import TrainedBounds
from qmambair_basicsr.ptq.fima_q import FisherLoss
from qmambair_basicsr.ptq.gptq import RowGrid, gptq
from qmambair_basicsr.ptq.search import dobi
from qmambair_basicsr.ptq.spr2q import Rectifiers
from qmambair_basicsr.ptq.two_d_quant import released_feature_loss, released_pixel_loss
from qmambair_basicsr.quantizers import MinMax
from qmambair_basicsr.quantizers.site import Site

NEAR = 1e-5


def bounds_of(bits, lower, upper):
    quantizer = TrainedBounds(MinMax(bits))
    quantizer.set_bounds(torch.tensor(lower), torch.tensor(upper))
    return quantizer


def test_dobi_of_2dquant_and_spr2q(shared_dir):
    for case in cases(shared_dir, "ptq_2dquant.pt", "dobi") + cases(shared_dir, "ptq_spr2q.pt", "dobi"):
        lower, upper = dobi(case["x"].reshape(1, -1), case["bits"], case.get("one_direction", False))
        assert far(lower, case["lower"]) < NEAR and far(upper, case["upper"]) < NEAR, case["name"]


def test_trained_bounds_have_the_releases_gradients(shared_dir):
    """Also where elements lie exactly on a bound, and at one bit."""
    for case in cases(shared_dir, "ptq_2dquant.pt", "fake_quant") + cases(shared_dir, "ptq_spr2q.pt", "fake_quant"):
        quantizer, x = bounds_of(case["bits"], case["lower"], case["upper"]), case["x"].clone().requires_grad_()
        y = quantizer(x)
        y.backward(case["grad_out"])
        assert far(y.detach(), case["y"]) < NEAR and far(x.grad, case["grad_x"]) < NEAR, case["name"]
        for grad, name in ((quantizer.lower.grad, "grad_lower"), (quantizer.upper.grad, "grad_upper")):
            assert far(grad, case[name]) < NEAR, (case["name"], name)
        assert far(quantizer.ordinary()(case["x"]).detach(), case["y"]) < NEAR


def test_crossed_bounds_give_a_constant(shared_dir):
    (case,) = cases(shared_dir, "ptq_spr2q.pt", "crossed")
    quantizer = bounds_of(case["bits"], case["lower"], case["upper"])
    assert far(quantizer(case["x"]).detach(), case["y"]) < NEAR
    assert far(quantizer.ordinary()(case["x"]).detach(), case["y"]) < NEAR


def test_feature_loss_as_released(shared_dir):
    (case,) = cases(shared_dir, "ptq_2dquant.pt", "feature_loss")
    features = [f.clone().requires_grad_() for f in case["features_q"]]
    loss = sum(released_feature_loss(a, b) for a, b in zip(features, case["features_f"], strict=True))
    loss.backward()
    assert abs(loss.item() / case["loss_as_code"] - 1) < NEAR
    for feature, grad in zip(features, case["grads_as_code"], strict=True):
        assert far(feature.grad, grad) < NEAR * grad.abs().max()


def test_pixel_loss_as_released(shared_dir):
    case = torch.load(shared_dir / "golden/ptq/ptq_2dquant_swinir_4b.pt", weights_only=True)
    loss = released_pixel_loss(case["output_q"], case["output_fp"])
    assert abs(loss.item() / case["loss_log"]["l_pix"] - 1) < NEAR


def test_rectified_linear(shared_dir):
    for case in cases(shared_dir, "ptq_spr2q.pt", "rectified_linear"):
        weight, count = case["weight"], case["num_rectifiers"]
        transform = Rectifiers(tuple(weight.shape), case["r"], count, 1, False, torch.Generator().manual_seed(0))
        assert far(transform.A.detach().abs().amax(), (6 / case["r"]) ** 0.5) < 0.05  # uniform up to that
        transform.bind(Layout("linear", weight.shape[1], -1, tuple(weight.shape), 1))
        assert torch.equal(transform.change(weight), weight)
        with torch.no_grad():
            transform.A.copy_(torch.stack(case["A"])[None])
            transform.B.copy_(torch.stack(case["B"])[None])
            transform.logits.copy_(case["logits"][None])
        w, a = (bounds_of(case["bits"], *case["bounds"][key]) for key in ("w", "a"))
        x = case["x"].clone().requires_grad_()
        merged = transform.change(weight)
        y = F.linear(a(x), w(merged), case["bias"])
        y.backward(case["grad_out"])
        found = {
            "gates": transform.gates()[0], "merged_weight": merged, "quantized_weight": w(merged), "y": y,
            "grad_x": x.grad, "grad_A": transform.A.grad[0], "grad_B": transform.B.grad[0],
            "grad_logits": transform.logits.grad[0], "grad_w_lower": w.lower.grad, "grad_w_upper": w.upper.grad,
            "grad_a_lower": a.lower.grad, "grad_a_upper": a.upper.grad,
        }  # fmt: skip
        for name, value in found.items():
            wanted = torch.stack(case[name]) if isinstance(case[name], list) else torch.as_tensor(case[name])
            assert far(value.detach(), wanted) < NEAR * max(1, wanted.abs().max().item()), (case["name"], name)


def test_spr2q_end_to_end(shared_dir):
    """Bounds, output and gradients of a whole network by the authors' code, which a Paddle run computed."""
    case = torch.load(shared_dir / "golden/ptq/ptq_spr2q_mambairv2_4b.pt", weights_only=True)
    plain, off = {"type": "MinMax", "bits": case["bits"]}, {"type": "Identity"}
    quant = dict.fromkeys(("weight", "act", "scan", "attention", "routing", "state"), plain) | {
        "overrides": {
            "*.D": {"scan": off},
            "layers.?.conv": {"weight": off, "act": off},
            "*.wqkv": {"weight": {**plain, "granularity": "channel"}},
        }
    }
    net = build_network({"type": "QMambaIRv2Light", **case["config"], "eval_routing": "argmax", "quant": quant})
    checkpoints.load_fp_state(net, case["params"])
    method = build_method({"type": "SPR2Q", "samples": 0})
    method.open(net)
    method.calibrate([case["calib"]])
    assert far(method.full(case["input"]), case["output_fp"]) < NEAR
    for name, kept in case["rectifiers"].items():
        place, _, part = name.rpartition(".")
        place, part = (place, "qkv".index(part)) if part in "qkv" else (name, 0)
        transform = transforms_of(net)[place]
        with torch.no_grad():
            for key in ("A", "B", "logits"):
                getattr(transform, key)[part].copy_(kept[key])
    block = "layers.0.residual_group.layers.0"
    quantizers = {
        f"{block}.wqkv.q.act_quantizer": f"{block}.wqkv.act_quantizer",
        f"{block}.win_mhsa.mymodule_a": f"{block}.win_mhsa.av_matmul.left_quantizer",
        f"{block}.assm.selectiveScan.mymodule_hs": f"{block}.assm.selectiveScan.quantizers.h",
        f"{block}.assm.selectiveScan.mymodule_Cs": f"{block}.assm.selectiveScan.quantizers.C",
        f"{block}.assm.fq_full_embedding_a": f"{block}.assm.prompt_matmul.right_quantizer",
        f"{block}.convffn1.sg.conv.act_quantizer": f"{block}.convffn1.sg.conv.act_quantizer",
    }
    for theirs, ours in quantizers.items():
        quantizer = net.get_submodule(ours)
        assert far(torch.stack((quantizer.lower, quantizer.upper)).flatten().detach(), case["bounds"][theirs]) < NEAR
    y = net(case["input"])
    assert far(y.detach(), case["output_q"]) < NEAR
    y.backward(case["grad_weight"])
    for theirs, ours in quantizers.items():
        if not theirs.endswith("wqkv.q.act_quantizer"):  # one pair of bounds here, three there
            quantizer, wanted = net.get_submodule(ours), torch.tensor(case["bound_grads"][theirs])
            grads = torch.stack((quantizer.lower.grad, quantizer.upper.grad)).flatten()
            assert far(grads, wanted) < 1e-4 * max(1, wanted.abs().max().item()), theirs
    wanted = case["logit_grads"][f"{block}.convffn1.fc1"]
    assert far(transforms_of(net)[f"{block}.convffn1.fc1"].logits.grad[0], wanted) < 1e-4 * wanted.abs().max()


def test_gptq(shared_dir):
    for case in cases(shared_dir, "ptq_gptq.pt"):
        grid = RowGrid(case["bits"], case["sym"]).refit(case["weight"])
        assert (far(grid.scale, case["scale"][:, 0]) < NEAR and far(grid.zero, case["zero"][:, 0]) < NEAR) or (
            case["groupsize"] > 0
        )
        groups = max(case["groupsize"], 0)
        done = gptq(case["weight"], case["X"].T @ case["X"], grid, case["percdamp"], case["actorder"], groups)
        assert far(done, case["weight_q"]) < NEAR, case["name"]


def test_adaround(shared_dir):
    for case in cases(shared_dir, "ptq_adaround_fima_aphq.pt", "adaround"):
        weight, zero, bits = case["weight"], case["zero"], case["bits"]
        codes = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if case["sym"] else (0, 2**bits - 1)
        position = weight / case["scale"]
        assert far(inverse(position - position.floor()), case["V_init"]) < NEAR
        scale, v = case["scale"].clone().requires_grad_(), case["V"].clone().requires_grad_()
        soft = rounded(weight, scale, zero * scale, (codes[0], codes[1]), rectified(v) + zero - zero)
        soft.backward(case["grad_out"])
        assert far(rectified(v).detach(), case["h"]) < NEAR and far(soft.detach(), case["y_soft"]) < NEAR
        assert far(v.grad, case["grad_V"]) < NEAR and far(scale.grad, case["grad_scale"]) < NEAR
        hard = rounded(weight, scale, zero * scale, codes, (v >= 0).float()).detach()
        assert far(hard, case["y_hard"]) < NEAR
        for exponent, value in case["regulariser"].items():
            v.grad = None
            loss = case["reg_weight"] * regulariser(v, float(exponent))
            loss.backward()
            assert far(loss.detach(), value) < NEAR and far(v.grad, case["regulariser_grads"][exponent]) < NEAR


def test_adaround_stands_in_for_a_quantizer(shared_dir):
    """The module agrees with the formula on the grid of the quantizer it stands in for."""
    case = cases(shared_dir, "ptq_adaround_fima_aphq.pt", "adaround")[0]
    weight, scale = case["weight"], case["scale"][:, 0]
    base = MinMax(case["bits"], Site.of_weight(len(weight), shape=tuple(weight.shape)), granularity="channel")
    lower = -case["zero"][:, 0] * scale
    base.set_bounds(lower, lower + (2 ** case["bits"] - 1) * scale)
    module = AdaRound(base, weight)
    module.start(weight)
    with torch.no_grad():
        module.V.copy_(case["V"])
        assert far(module(weight), case["y_hard"]) < NEAR
    assert far(module(weight).detach(), case["y_soft"]) < NEAR


def test_schedule_of_the_regulariser(shared_dir):
    (case,) = cases(shared_dir, "ptq_adaround_fima_aphq.pt", "schedule")
    for t, value in zip(case["t"], case["b"], strict=True):
        assert abs(beta(t, 20_000) - value) < NEAR


def test_qdrop(shared_dir):
    (case,) = cases(shared_dir, "ptq_adaround_fima_aphq.pt", "qdrop")
    quantized = ((case["x"] / case["scale"]).round() + case["zero"]).clamp(0, 2 ** case["bits"] - 1) - case["zero"]
    mixed = torch.where(case["quantized_mask"], quantized * case["scale"], case["x"])
    assert far(mixed, case["y"]) < NEAR
    net = build_network(
        {"type": "QMambaIR", "embed_dim": 30, "depths": [1], "d_state": 2, "upscale": 2,
         "quant": {"act": {"type": "MinMax", "bits": case["bits"]}}}
    )  # fmt: skip
    quantizer = net.layers[0].conv.act_quantizer
    lower = torch.tensor(-case["zero"] * case["scale"])
    quantizer.set_bounds(lower, lower + 15 * case["scale"])
    with dropped(net, 0.5, torch.Generator().manual_seed(0)):
        y = quantizer(case["x"])
    exact = y == case["x"]
    assert 0.2 < exact.float().mean() < 0.8
    assert far(torch.where(exact, 0.0, y), torch.where(exact, 0.0, quantized * case["scale"])) < NEAR


def test_fisher_losses(shared_dir):
    names = {"dplr": "fisher_dplr", "diag": "fisher_diag", "low_rank": "fisher_lr"}
    for case in cases(shared_dir, "ptq_adaround_fima_aphq.pt", "fima_loss"):
        for kind, name in names.items():
            if name not in case["grad_pred"]:
                continue
            loss = FisherLoss(kind)
            for gradient, error in zip(case["grad_rows"], case["delta_rows"], strict=True):
                loss.update(gradient, error)
            assert far(loss(case["pred"], case["target"]), case["first"][name]) < NEAR
            later = (case["target"] + 0.7 * (case["pred"] - case["target"])).requires_grad_()
            value = loss(later, case["target"])
            value.backward()
            assert far(value.detach(), case["later"][name]) < NEAR
            assert far(later.grad, case["grad_pred"][name]) < NEAR


def test_perturbation_importance(shared_dir):
    (case,) = cases(shared_dir, "ptq_adaround_fima_aphq.pt", "aphq_importance")
    state, t = case["state"], case["temperature"]

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def scores(x):
        x = x + linear(norm(x, "b2.norm1"), "b2.attn")
        x = x + linear(F.gelu(linear(norm(x, "b2.norm2"), "b2.mlp.0")), "b2.mlp.2")
        return linear(x.mean(1), "head")

    wanted = scores(case["block_out"]).div(t).softmax(-1)

    def gradient(out):
        out = out.detach().requires_grad_()
        loss = F.kl_div(scores(out).div(t).log_softmax(-1), wanted, reduction="sum") / 3  # batches of three there
        return torch.autograd.grad(loss, out)[0]

    found = perturbed_importance(gradient, case["block_out"], 1e-6)
    assert far(found, case["importance"]) < NEAR * case["importance"].abs().max().item()


def test_importance_weighted_loss(shared_dir):
    (case,) = cases(shared_dir, "ptq_adaround_fima_aphq.pt", "aphq_loss")
    method = build_method({"type": "APHQViT"})
    method.first, method.importance = {}, case["importance"]
    assert far(method.reconstruction(0, 10, case["pred"], case["target"]), case["first"]) < NEAR
    assert far(method.reconstruction(1, 10, case["pred_second"], case["target"]), case["second"]) < NEAR
