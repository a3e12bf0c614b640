"""2DQuant: bounds from a search, then trained against the full-precision network.

Liu et al., "2DQuant: Low-bit Post-Training Quantization for Image Super-Resolution", NeurIPS 2024; checked against
Kai-Liu001/2DQuant.

===========  ===========================================================  =========================
paper        meaning                                                      here
===========  ===========================================================  =========================
DOBI         bounds of least error among shrunken ranges                  ``search.dobi``
DQC          training of all bounds, and of nothing else                  :meth:`TwoDQuant.losses`
l, u         bounds of a tensor                                           ``bounds.TrainedBounds``
===========  ===========================================================  =========================

Calibration is in full precision (uncalibrated quantizers of the release return their input), so bounds do not depend on
quantization in front of them. Loss of the paper: L1 to the full-precision output plus 5 times the distance of features,
each divided by its Frobenius norm. ``loss: released``, the default, is what the release computes: the norms of a batch
broadcast to (B, B, L, C), and means are divided by the number of elements once more, after which the feature term has no
weight (1e-3 of the pixel term and less). ``loss: formula`` is the paper's; the sum over elements needs a smaller
``feature_weight``.

``bound_steps: relative`` is ours: a step moves a bound by a share of its range instead of by a length.

MambaIR's scan inputs, projections and convolutions are sites like any other (our decision: the paper has no Mamba).
``scan: Quamba`` and the like leave the modules around the scans to another method, in calibration: the setting of the other
methods in SPR2Q's tables. ``scan: {type: PTQ4VM, iterations: 1000}`` gives it options; those iterations (1000 unless said) are over all
modules together, one after the other, with everything else in full precision. Queries, keys and values are one layer here: their weights have bounds of their own where the weight's
quantizer is per channel; their common input has one pair of bounds, where the release trains three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..layers.info import blocks_of
from ..losses.distillation_loss import FeatureAlignmentLoss
from ..quantizers.spec import Option, SpecError
from .bounds import BoundsTogether, bound_parameters, settle_bounds, train_bounds
from .method import register_method
from .ranges import SAMPLES, quantized_sites, set_ranges
from .search import dobi
from .training import SEED, OptimizedMethod
from .within import METHODS, OWN, MethodWithin, apply_within, method_within, scan_modules

COMMON = {
    "loss": Option("released", "the release's loss or the paper's", choices=("released", "formula")),
    "feature_weight": Option(5.0, "lambda of the feature term", low=0, high=1e6),
    "features": Option("groups", "whose outputs are features", choices=("blocks", "groups")),
    "lr": Option(1e-2, "learning rate", low=0, high=1),
    "bound_steps": Option(
        "absolute",
        "what the rate means for a bound: a length, or a share of half its range",
        choices=("absolute", "relative"),
    ),
    "schedule": Option("constant", "of the learning rate", choices=("constant", "cosine")),
    "samples": Option(SAMPLES, "values of a tensor that the search looks at; 0: all", low=0, high=1e9),
    "scan": MethodWithin(
        OWN, "method of the modules around the scans, which then stay; a name or a mapping", choices=(OWN, *METHODS)
    ),
    "seed": SEED,
}


def released_pixel_loss(result: Tensor, target: Tensor) -> Tensor:
    """L1, averaged and divided by the number of elements of one sample."""
    return (result - target).abs().mean() / target.numel() * len(target)


def released_feature_loss(feature: Tensor, target: Tensor, weight: float = 5.0) -> Tensor:
    """The releases' feature term of one layer, (B, L, C) each, as they compute it.

    Norms (B, 1, 1, 1) against features (B, L, C) broadcast to (B, B, L, C): every sample is divided by every sample's norm.
    """
    parts = []
    for x in (feature, target.detach()):
        norm = torch.linalg.vector_norm(x.detach(), dim=(1, 2))
        parts.append(x / norm[:, None, None, None])
    difference = parts[0] - parts[1]
    return weight * difference.square().mean() / difference.numel()


@contextmanager
def outputs_of(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, what modules returned last, by name."""
    kept: dict[str, Tensor] = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _, given, result, name=name: kept.update({name: result}))
        for name in names
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def feature_modules(net: nn.Module, which: str) -> list[str]:
    """Names of the modules whose outputs are compared: the blocks, or what runs a row of them."""
    names = list(blocks_of(net))
    if which == "blocks":
        return names
    groups = []
    for name in names:
        group = name.rpartition(".")[0]
        if type(net.get_submodule(group)).forward is nn.Module.forward:  # a plain list, which nobody calls
            group = group.rpartition(".")[0]
        groups.append(group or name)
    return list(dict.fromkeys(groups))


@torch.no_grad()
def relative_steps(bounds: Sequence[nn.Parameter], before: Sequence[Tensor]) -> None:
    """Multiply what a step moved bounds by, by half of the range that each belonged to.

    Adam moves every bound by about its rate. States and step sizes of a scan span a tenth, inputs of linears ten: what is a
    small step for these throws those about.

    Args:
        bounds: lower and upper ones in turn.
        before: what they were before the step.
    """
    # all at once: there are a thousand pairs, and launching as many kernels for each takes a GPU longer than computing
    half = torch._foreach_sub(before[1::2], before[::2])
    torch._foreach_abs_(half)
    torch._foreach_clamp_min_(half, 1e-6)
    torch._foreach_div_(half, 2.0)
    for ends, starts in ((bounds[::2], before[::2]), (bounds[1::2], before[1::2])):
        moved = torch._foreach_sub(ends, starts)
        torch._foreach_mul_(moved, half)
        torch._foreach_add_(moved, starts)
        torch._foreach_copy_(ends, moved)


@register_method
class TwoDQuant(OptimizedMethod):
    """DOBI and DQC; see the module docstring."""

    options: ClassVar = COMMON
    betas: ClassVar = (0.9, 0.99)
    default_iterations = 4000

    def open(self, net: nn.Module) -> None:
        scan = self.settings["scan"]
        self.held = () if scan == OWN else scan_modules(net)
        if scan != OWN and not self.held:
            raise SpecError(f"ptq.method.scan: {type(net).__name__} has no scan that another method could quantize")
        super().open(net)

    def attach(self) -> None:
        train_bounds([p for p in quantized_sites(self.net, type(self).__name__) if not self.is_held(p.site.name)])
        self.together = BoundsTogether(self.net)
        self.compared = feature_modules(self.net, self.settings["features"])

    def is_held(self, name: str) -> bool:
        """Whether a place or a site belongs to what ``scan`` leaves to another method."""
        return name.startswith(self.held)

    def calibrate(self, batches: Sequence[Tensor]) -> None:
        if self.held:
            self._quantize_held(batches)
        sites = [p for p in quantized_sites(self.net, type(self).__name__) if not self.is_held(p.site.name)]

        def choose(placed, sample):
            quantizer = placed.quantizer
            parts = quantizer.lower.numel()
            rows = sample.rows.reshape(parts, -1)
            ends = (sample.low.reshape(parts, -1).amin(1), sample.high.reshape(parts, -1).amax(1))
            return dobi(rows, quantizer.bits, ends=ends)

        set_ranges(self.net, batches, sites, choose, int(self.settings["samples"]))

    def _quantize_held(self, batches: Sequence[Tensor]) -> None:
        given = self.settings["scan"]
        method, iterations = method_within(given, "ptq.method.scan")
        for name in {"samples", "seed"} & method.options.keys():
            if isinstance(given, str) or name not in given:
                method.settings[name] = self.settings[name]
        apply_within(method, self.net, batches, self.held, iterations)

    def build_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.trained(), self.settings["lr"], self.betas)]

    def trained(self) -> list[nn.Parameter]:
        """What is trained."""
        bounds = self.bounds = bound_parameters(self.net)  # looking for them takes as long as a block
        for bound in bounds:
            bound.requires_grad_(True)
        return bounds

    def schedule(self, iteration: int) -> None:
        share = 1.0
        if self.settings["schedule"] == "cosine":
            share = (1 + math.cos(math.pi * self.progress(iteration))) / 2
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings["lr"] * share

    def stage(self, iteration: int) -> object:
        return "bounds"

    def progress(self, iteration: int) -> float:
        """Share of what a fall of the rate spans."""
        return iteration / self.total

    def update(self, iteration: int, images: Tensor) -> dict[str, Tensor]:
        bounds = [b for b in self.bounds if b.requires_grad]
        if self.settings["bound_steps"] == "absolute" or not bounds:
            return super().update(iteration, images)
        before = [b.detach().clone() for b in bounds]
        losses = super().update(iteration, images)
        relative_steps(bounds, before)
        return losses

    def losses(self, iteration: int, images: Tensor) -> dict[str, Tensor]:
        # nothing of it is trained, so there is no graph; without gradients the images of a batch would run apart
        with torch.enable_grad(), outputs_of(self.full, self.compared) as kept:
            target = self.full(images)
            wanted = [kept[name] for name in self.compared]
        with self.together.lent(), outputs_of(self.net, self.compared) as kept:
            result = self.net(images)
        features = [kept[name] for name in self.compared]
        weight = self.settings["feature_weight"]
        if self.settings["loss"] == "formula":
            loss = FeatureAlignmentLoss(loss_weight=weight)
            return {"l_pix": (result - target).abs().mean(), "l_feature": loss(features, wanted)}
        terms = [
            released_feature_loss(a.flatten(1, -2), b.flatten(1, -2), weight)
            for a, b in zip(features, wanted, strict=True)
        ]
        return {"l_pix": released_pixel_loss(result, target), "l_feature": sum(terms)}

    def finish(self, net: nn.Module) -> None:
        settle_bounds(net)
