"""Teacher losses against their formulas, and the recipes' Charbonnier loss."""

from __future__ import annotations

import pytest
import torch
from basicsr.losses import build_loss
from torch import nn

from qmambair_basicsr.losses.feature_capture import FeatureCapture, match_modules


def test_charbonnier_of_the_recipes_is_basicsrs_own():
    loss = build_loss({"type": "CharbonnierLoss", "eps": 1e-6})
    x, y = torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    expected = ((x - y) ** 2 + 0.001**2).sqrt().mean()
    torch.testing.assert_close(loss(x, y), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("criterion", "formula"), [("l1", torch.abs), ("mse", torch.square)])
def test_pixel_distillation(criterion, formula):
    student = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    loss = build_loss({"type": "PixelDistillationLoss", "criterion": criterion, "loss_weight": 0.3})
    value = loss(student, teacher)
    torch.testing.assert_close(value, 0.3 * formula(student - teacher).mean())
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_feature_alignment_formula_and_scale_invariance(reduction):
    loss = build_loss({"type": "FeatureAlignmentLoss", "layers": ["a"], "loss_weight": 5.0, "reduction": reduction})
    students = [torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)]
    teachers = [torch.randn_like(f) for f in students]
    squares = [(s / s.norm() - t / t.norm()) ** 2 for s, t in zip(students, teachers, strict=True)]
    expected = 5.0 * sum(getattr(square, reduction)() for square in squares)
    torch.testing.assert_close(loss(students, teachers), expected)
    torch.testing.assert_close(loss([3 * s for s in students], [0.5 * t for t in teachers]), expected)
    assert loss(students, [2 * s for s in students]).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("detach_norm", [False, True])
def test_feature_alignment_gradient(detach_norm):
    loss = build_loss({"type": "FeatureAlignmentLoss", "layers": "a", "detach_norm": detach_norm})
    student = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, dtype=torch.float64)
    loss([student], [teacher]).backward()
    norm, target = student.detach().norm(), teacher / teacher.norm()
    unit = student.detach() / norm
    expected = 5.0 * 2 * (unit - target) / norm
    if not detach_norm:  # the direction that only scales the feature has no gradient
        expected = expected - (expected * unit).sum() * unit
        assert torch.autograd.gradcheck(lambda s: loss([s], [teacher]), student)
    torch.testing.assert_close(student.grad, expected)


def test_zero_features_stay_finite():
    loss = build_loss({"type": "FeatureAlignmentLoss", "layers": ["a"]})
    student = torch.zeros(2, 3, requires_grad=True)
    value = loss([student], [torch.ones(2, 3)])
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "PixelDistillationLoss", "criterion": "l2"}, "'l2'.*l1 or mse"),
        ({"type": "FeatureAlignmentLoss", "layers": []}, "layers is empty"),
        ({"type": "FeatureAlignmentLoss", "layers": ["a"], "reduction": "none"}, "'none'.*sum or mean"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build_loss(options)


def test_shapes_and_counts_are_checked():
    feature = build_loss({"type": "FeatureAlignmentLoss", "layers": ["a"]})
    with pytest.raises(ValueError, match=r"\(2, 3\) against teacher \(3, 2\)"):
        feature([torch.zeros(2, 3)], [torch.zeros(3, 2)])
    with pytest.raises(ValueError, match="1 student blocks against 2"):
        feature([torch.zeros(1)], [torch.zeros(1)] * 2)
    with pytest.raises(ValueError, match="output: student"):
        build_loss({"type": "PixelDistillationLoss"})(torch.zeros(2), torch.zeros(3))


def network() -> nn.Module:
    net = nn.Module()
    net.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)])
    net.tail = nn.Linear(2, 1)
    return net


def test_patterns_match_part_by_part():
    net = network()
    assert match_modules(net, ["layers.*"]) == ["layers.0", "layers.1", "layers.2"]
    assert match_modules(net, ["tail", "layers.[02].0"]) == ["layers.0.0", "layers.2.0", "tail"]
    with pytest.raises(ValueError, match=r"'layer\.\*' matches no module.*layers"):
        match_modules(net, ["layers.*", "layer.*"])


def test_capture_returns_what_ran_and_forgets_it():
    net = network()
    capture = FeatureCapture(net, ["layers.*"])
    x = outputs = torch.randn(4, 2)
    expected = []
    for layer in net.layers:
        outputs = layer(outputs)
        expected.append(outputs)
    features = capture.take()
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))
    assert all(feature.requires_grad for feature in features)
    net.layers[0](x)
    with pytest.raises(RuntimeError, match=r"layers\.1 did not run"):
        capture.take()
    capture.close()
    assert not any(layer._forward_hooks for layer in net.layers)
