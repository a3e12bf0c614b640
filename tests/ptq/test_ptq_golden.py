"""Methods and building blocks against vectors that the authors' code computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from golden_cases import cases, far

from qmambair_basicsr.layers.transforms import Layout
from qmambair_basicsr.ptq import build_method
from qmambair_basicsr.ptq.adaround import AdaRound, beta, inverse, rectified, regulariser, rounded
from qmambair_basicsr.ptq.aphq_vit import perturbed_importance
from qmambair_basicsr.ptq.blockwise import dropped
from qmambair_basicsr.ptq.bounds import TrainedBounds
from qmambair_basicsr.ptq.fima_q import FisherLoss
from qmambair_basicsr.ptq.gptq import RowGrid, gptq
from qmambair_basicsr.ptq.search import dobi
from qmambair_basicsr.ptq.spr2q import Rectifiers
from qmambair_basicsr.ptq.two_d_quant import released_feature_loss
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


def test_linear_of_queries_keys_and_values(shared_dir):
    """Three pairs of bounds for the weight's rows; one of the input, which all three of the release start from."""
    (case,) = cases(shared_dir, "ptq_2dquant.pt", "qkv_linear")
    weight, x = case["weight"], case["x"]
    w = TrainedBounds(MinMax(case["bits"], Site.of_weight(len(weight)), granularity="channel"), parts=3)
    w.set_bounds(*dobi(weight.reshape(3, -1), case["bits"]))
    a = TrainedBounds(MinMax(case["bits"]))
    a.set_bounds(*dobi(x.reshape(1, -1), case["bits"]))
    for part, name in enumerate("qkv"):
        bounds = case["bounds"][name]
        assert far(torch.stack((w.lower[part], w.upper[part])).detach(), bounds["w"]) < NEAR
        assert far(torch.cat((a.lower, a.upper)).detach(), bounds["a"]) < NEAR
    assert far(F.linear(x, weight, case["bias"]), case["y_calibration"]) < NEAR
    for weights, inputs in ((w, a), (w.ordinary(), a.ordinary())):
        assert far(F.linear(inputs(x), weights(weight), case["bias"]).detach(), case["y"]) < NEAR


def test_feature_loss_as_released(shared_dir):
    (case,) = cases(shared_dir, "ptq_2dquant.pt", "feature_loss")
    features = [f.clone().requires_grad_() for f in case["features_q"]]
    loss = sum(released_feature_loss(a, b) for a, b in zip(features, case["features_f"], strict=True))
    loss.backward()
    assert abs(loss.item() / case["loss_as_code"] - 1) < NEAR
    for feature, grad in zip(features, case["grads_as_code"], strict=True):
        assert far(feature.grad, grad) < NEAR * grad.abs().max()


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


def test_gptq(shared_dir):
    for case in cases(shared_dir, "ptq_gptq.pt"):
        grid = RowGrid(case["bits"], case["sym"]).refit(case["weight"])
        for own, name in ((grid.scale, "scale"), (grid.zero, "zero")):  # of the whole matrix, of groups as well
            assert far(own, case[name][:, 0]) < NEAR, (case["name"], name)
        assert far(torch.stack([grid(column) for column in case["weight"].T], 1), case["rtn"]) < NEAR, case["name"]
        groups = max(case["groupsize"], 0)
        done = gptq(case["weight"], case["X"].T @ case["X"], grid, case["percdamp"], case["actorder"], groups)
        assert far(done, case["weight_q"]) < NEAR, case["name"]


def test_adaround(shared_dir):
    for case in cases(shared_dir, "ptq_adaround_fima_aphq.pt", "adaround"):
        weight, zero, bits = case["weight"], case["zero"], case["bits"]
        codes = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if case["sym"] else (0, 2**bits - 1)
        position = weight / case["scale"]
        assert far(inverse(position - position.floor()), case["V_init"]) < NEAR
        assert far(rectified(case["V_init"]), case["h_init"]) < NEAR
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


def test_qdrop(shared_dir, monkeypatch):
    """Values and gradients with the release's mask; its step is trained and its zero stays, here both bounds are."""
    (case,) = cases(shared_dir, "ptq_adaround_fima_aphq.pt", "qdrop")
    net = build_network(
        {"type": "QMambaIR", "embed_dim": 30, "depths": [1], "d_state": 2, "upscale": 2,
         "quant": {"act": {"type": "MinMax", "bits": case["bits"]}}}
    )  # fmt: skip
    layer = net.layers[0].conv
    layer.act_quantizer = bounds_of(case["bits"], -case["zero"] * case["scale"], (15 - case["zero"]) * case["scale"])
    x = case["x"].clone().requires_grad_()
    with dropped(net, 0.5, torch.Generator().manual_seed(0)):
        y = layer.act_quantizer(x).detach()
    exact = y == case["x"]
    assert 0.2 < exact.float().mean() < 0.8
    grid = ((case["x"] / case["scale"]).round() + case["zero"]).clamp(0, 15) - case["zero"]
    assert far(torch.where(exact, 0.0, y), torch.where(exact, 0.0, grid * case["scale"])) < NEAR
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: case["quantized_mask"].float())
    with dropped(net, 0.5, torch.Generator()):
        y = layer.act_quantizer(x)
    y.backward(case["grad_out"])
    bounds = layer.act_quantizer
    step = (15 - case["zero"]) * bounds.upper.grad - case["zero"] * bounds.lower.grad
    assert far(y.detach(), case["y"]) < NEAR and far(x.grad, case["grad_x"]) < NEAR
    assert far(step, case["grad_scale"]) < NEAR


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


def test_squared_error_relative_to_its_first_value(shared_dir):
    """What BRECQ reconstructs with, the ``mse`` of the releases."""
    for case in cases(shared_dir, "ptq_adaround_fima_aphq.pt", "fima_loss"):
        method = build_method({"type": "BRECQ"})
        method.first, target = {}, case["target"]
        assert far(method.reconstruction(0, 10, case["pred"], target), case["first"]["mse"]) < NEAR
        later = (target + 0.7 * (case["pred"] - target)).requires_grad_()
        value = method.reconstruction(1, 10, later, target)
        value.backward()
        assert far(value.detach(), case["later"]["mse"]) < NEAR and far(later.grad, case["grad_pred"]["mse"]) < NEAR


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
