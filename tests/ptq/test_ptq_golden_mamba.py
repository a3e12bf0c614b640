"""PTQ methods for Mamba networks (Quamba, MambaQuant, PTQ4VM) against values of their releases."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from golden_cases import cases, far
from torch import nn

from qmambair_basicsr.calibration import MinMaxObserver, RunningPercentile, SampleObserver
from qmambair_basicsr.layers.transforms import Layout, Rotation, Smoothing
from qmambair_basicsr.ptq import build_method
from qmambair_basicsr.ptq.mambaquant import aligned_rotation, principal_axes
from qmambair_basicsr.ptq.ptq4vm import stepped
from qmambair_basicsr.ptq.search import clip_search, quantized, step_search
from qmambair_basicsr.ptq.smoothing import smoothing_scales
from qmambair_basicsr.quantizers import MinMax
from qmambair_basicsr.quantizers.site import ACTIVATION, Site

NEAR = 1e-5


def test_quamba_observers(shared_dir):
    for case in cases(shared_dir, "ptq_quamba.pt"):
        bits, top = case["bits"], 2 ** (case["bits"] - 1) - 1
        if case["kind"] == "absmax":
            quantizer = MinMax(bits, Site.of_weight(), symmetric=True)
            quantizer.set_bounds(-case["x"].abs().max(), case["x"].abs().max())
            codes, scale, _ = quantizer.to_int(case["x"])
            assert far(scale, case["scale"]) < NEAR and far(codes * scale, case["q"] * scale) < NEAR, case["name"]
            continue
        if case["kind"] == "PerTensorPercentileObserver":
            observer = RunningPercentile(case["options"]["percentile_alpha"])
            for batch, running in zip(case["batches"], case["running_max"], strict=True):
                observer.update(batch)
                assert far(observer.finish(), running) < NEAR
            assert far(observer.finish() / top, case["scale"]) < NEAR
            continue
        observer = MinMaxObserver()
        for batch in case["batches"]:
            observer.update(batch)
        low, high = observer.finish()
        if case["options"]["sym"]:
            assert far(torch.maximum(high, -low) / top, case["scale"]) < NEAR
        else:
            quantizer = MinMax(bits, ACTIVATION)
            quantizer.set_bounds(low, high)
            assert far(quantizer.to_int(case["batches"][0])[1], case["scale"]) < NEAR


def test_rotation_by_principal_axes(shared_dir):
    """All variances become equal; the published orientation of the dt path leaves them as unequal as they were."""
    (case,) = cases(shared_dir, "ptq_mambaquant.pt", "klt")
    x = case["calib_first_batch"].double().flatten(0, 1)
    covariance = torch.cov(x.T)
    assert far(covariance, case["covariance"]) < NEAR
    axes = principal_axes(covariance)
    assert far(axes.abs(), case["K"].abs()) < NEAR
    assert far(axes @ torch.diag(case["eigenvalues_ascending"]) @ axes.T, covariance) < NEAR
    signs = (axes * case["K"]).sum(0).sign()  # eigenvectors are unique up to them
    turn = (axes * signs) @ case["hadamard"]
    assert far(turn, case["R"]) < NEAR
    own = aligned_rotation(covariance, case["hadamard"])
    variance = (x @ own).var(0)
    assert far(variance, case["variance"]["xKH"][0]) < NEAR
    assert (x @ own.T).var(0).std() > 0.1
    transform = Rotation(turn.T.float())  # their Hadamard matrix is orthogonal to 4e-8
    transform.bind(Layout("linear", len(turn), -1, tuple(case["weight"].shape), 1))
    assert far(transform.change(case["weight"].float()), case["weight_rotated"]) < NEAR


def test_smooth_fused_scales(shared_dir):
    """Dividing what the gate multiplies by s is their SiLU_s of a gate divided by s."""
    (case,) = cases(shared_dir, "ptq_mambaquant.pt", "smooth_fused_silu")
    s = smoothing_scales(case["act_max"], case["out_weight"].abs().amax(0), 0.5, 1e-2)
    assert far(s, case["s"]) < NEAR
    transform = Smoothing(s)
    transform.bind(Layout("linear", len(s), -1, tuple(case["out_weight"].shape), 1))
    assert far(transform.change(case["out_weight"]), case["out_weight_new"]) < NEAR
    gate = F.silu(F.linear(case["x"], case["gate_weight"]))
    ours = F.linear(case["y"] / s * gate, transform.change(case["out_weight"]))
    assert far(ours, case["out"]) < NEAR and far(ours, case["out_new"]) < NEAR


def test_uniform_affine_ranges_of_mambaquant(shared_dir):
    """Weights and static min-max: our ranges give their steps; their zero is rounded, so outputs may differ by one."""
    for case in cases(shared_dir, "ptq_mambaquant.pt", "uniform_affine"):
        options = case["options"]
        if options.get("observe") != "minmax":
            continue
        site = Site.of_weight(len(case["x"])) if options.get("is_weight") else ACTIVATION
        quantizer = MinMax(options["n_bits"], site, granularity="channel" if options.get("is_weight") else "tensor")
        observer = MinMaxObserver(quantizer.dim)
        for batch in case["calib"] or [case["x"]]:
            observer.update(batch)
        quantizer.set_bounds(*observer.finish())
        scale = quantizer.to_int(case["x"])[1]
        assert far(scale.reshape(case["scale"].shape), case["scale"]) < NEAR
        assert ((quantizer(case["x"]).detach() - case["y"]).abs() <= 1.01 * case["scale"].max()).all()


def test_percentile_of_mambaquant(shared_dir):
    """Their percentile is of a histogram with 2048 bins, ours of a sample: two bins apart at most."""
    (case,) = (c for c in cases(shared_dir, "ptq_mambaquant.pt", "uniform_affine") if c["options"].get("observe") == "percentile")  # fmt: skip
    observer = SampleObserver(0)
    for batch in case["calib"]:
        observer.update(batch)
    placed = SimpleNamespace(site=SimpleNamespace(parameter=None))
    lower, upper = build_method({"type": "MambaQuant"}).choose(placed, observer.finish())
    scale, width = case["scale"], upper - lower
    assert far(255 * scale, width) < 2 * width / 2048
    assert far(-case["zero"] * scale, lower) < scale / 2 + 2 * width / 2048  # their zero is rounded
    assert (quantized(case["x"], lower, upper, 8) - case["y"]).abs().max() <= 1.01 * scale


def test_ranges_of_tokens_of_mambaquant(shared_dir):
    (case,) = (c for c in cases(shared_dir, "ptq_mambaquant.pt", "uniform_affine") if "dynamic_method" in c["options"])
    tokens = case["x"].flatten(0, 1)
    observer = MinMaxObserver(0)
    observer.update(tokens)
    lower, upper = (bound[:, None] for bound in observer.finish())
    scale = case["scale"].flatten(0, 1)
    assert far((upper - lower) / 255, scale) < NEAR
    assert ((quantized(tokens, lower, upper, 8) - case["y"].flatten(0, 1)).abs() <= 1.01 * scale).all()


def test_ptq4vm_linear(shared_dir):
    for case in cases(shared_dir, "ptq_ptq4vm.pt"):
        calib, weight = case["calib"], case["weight"]
        s = smoothing_scales(calib.abs().flatten(0, 1).amax(0), weight.abs().amax(0), case["alpha"])
        assert far(s, case["smooth"]) < NEAR
        rows = calib / s
        rows = rows.transpose(0, 1).flatten(1) if case["per_token"] else rows.reshape(1, -1)
        if case["trunc"]:
            step, zero = clip_search(rows, case["bits_a"])
            assert far(step, case["act_step"].flatten()) < NEAR and far(zero, case["act_zero"].flatten()) == 0
            assert far(step_search(weight * s, case["bits_w"]), case["weight_step"][:, 0]) < NEAR
        names = ("smooth", "weight_step", "act_step")
        smooth, w, a = (case[name].flatten().clone().requires_grad_() for name in names)
        x, top = case["x"].clone().requires_grad_(), 2 ** (case["bits_w"] - 1) - 1
        act = stepped(x / smooth, a[:, None], case["act_zero"].view(-1, 1), 0, 2 ** case["bits_a"] - 1)
        quantized = stepped(weight * smooth, w[:, None], torch.zeros(()), -top, top, weight=True)
        y = F.linear(act, quantized, case["bias"])
        y.backward(case["grad_out"])
        found = {"act_q": act, "weight_q": quantized, "y": y, "grad_x": x.grad, "grad_smooth": smooth.grad,
                 "grad_weight_step": w.grad, "grad_act_step": a.grad}  # fmt: skip
        for name, value in found.items():
            wanted = case[name].reshape(value.shape)
            assert far(value.detach(), wanted) < NEAR * max(1, wanted.abs().max().item()), (case["name"], name)


def test_hadamard_orders(shared_dir):
    """Every order that the report says Paley and doubling reach."""
    import json

    from qmambair_basicsr.layers.hadamard import hadamard

    report = json.loads((shared_dir / "golden/ptq/hadamard_report.json").read_text())
    for order, entry in report.items():
        if "paley1_then_doubling" in entry:
            matrix = hadamard(int(order))
            assert torch.equal(matrix @ matrix.T, int(order) * torch.eye(int(order), dtype=torch.float64)), order
            assert isinstance(matrix, torch.Tensor) and not isinstance(matrix, nn.Parameter)
