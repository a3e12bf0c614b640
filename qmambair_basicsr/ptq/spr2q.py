"""SPR2Q: weights rectified by a group of low-rank increments, and a routing among them that ends up static.

"SPR2Q: Static Priority-based Rectifier Routing Quantization for Image Super-Resolution"; checked against momo5-a11/SPR2Q
(Paddle).

========  =======================================================================  ==========================
paper     meaning                                                                  here
========  =======================================================================  ==========================
PQFR      W' = Q(W + B A): the rectifier (A, B) is trained through the quantizer   :class:`Rectifiers`
RGT       training of N rectifiers, W + sum_i g_i B_i A_i, and of all bounds       iterations before ``routing``
g_i       routing weights: softmax of N logits for each layer                      ``Rectifiers.gates``
OSRC      the logits alone are trained                                             the last ``routing`` iterations
merge     the increments become part of the weights                                :meth:`SPR2Q.finish`
========  =======================================================================  ==========================

The release trains logits that start equal; the paper's gating network, which looks at a layer's input, is ``gating:
network`` (its shape is not published: here one linear on the mean of the input, and the routing of a batch is the mean over
its images). The logits follow its mean, so OSRC starts from it. A starts uniform in +-sqrt(6 / rank) as released (Paddle's
Kaiming initialiser takes the fan-in of the other dimension), B at 0. The release's rate is constant: its milestone lies
behind its last iteration. ``schedule: cosine`` falls once in each of the two stages.

Rectified are linears (queries, keys and values each with rectifiers of their own), as in the release; of the scan's
projections and of convolutions only the bounds are trained. The rest is 2DQuant: bounds from DOBI, the loss, one pair of
bounds for the input of queries, keys and values. ``quant: state`` quantizes the scan's states as released. One bit works: two
levels. On networks without attention it rectifies what linears they have (our decision); one without linears is refused.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers.merging import merge
from ..layers.transforms import Layout, Place, Transform, TransformError, attach, places, transforms_of
from ..quantizers.spec import Option, SpecError
from .bounds import SPLIT, settle_bounds
from .method import register_method, require_no_transforms
from .training import OptimizedMethod
from .two_d_quant import COMMON, TwoDQuant


class Rectifiers(Transform):
    """``W + sum_i g_i B_i A_i`` for each of the parts of a weight's rows.

    Args:
        shape: of the weight, (rows, columns).
        rank: r.
        count: N.
        parts: row groups with rectifiers of their own.
        network: whether a gating network chooses during training.
        generator: of the starting values.
    """

    def __init__(
        self, shape: tuple[int, int], rank: int, count: int, parts: int, network: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        rows, columns = shape
        self.shape = shape
        start = torch.rand(parts, count, rank, columns, generator=generator)
        self.A = nn.Parameter((2 * start - 1) * math.sqrt(6 / rank))
        self.B = nn.Parameter(torch.zeros(parts, count, rows // parts, rank))
        self.logits = nn.Parameter(torch.full((parts, count), 1 / count))
        self.gate = nn.Linear(columns, parts * count) if network else None
        if network:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        self.choosing = network  # until the offline calibration of the routing
        self._mean: Tensor | None = None

    def check(self, layout: Layout) -> None:
        if self.shape != layout.weight_shape:
            raise TransformError(f"{layout.name}: Rectifiers of {self.shape} at a weight of {layout.weight_shape}")

    def enter(self, x: Tensor) -> Tensor:
        if self.choosing and torch.is_grad_enabled():
            self._mean = x.flatten(1, -2).mean(1) if x.ndim > 2 else x  # (B, C)
        return x

    def gates(self) -> Tensor:
        """Routing weights, (parts, N); they add up to 1 in each part."""
        if not self.choosing or self._mean is None or not torch.is_grad_enabled():
            return self.logits.softmax(-1)
        chosen = self.gate(self._mean).unflatten(-1, self.logits.shape).softmax(-1).mean(0)
        self._mean = None
        with torch.no_grad():  # what the network chooses on average is where the static routing starts
            self.logits.lerp_(chosen.log(), 0.02)
        return chosen

    def change(self, weight: Tensor) -> Tensor:
        increment = torch.einsum("pn,pnor,pnri->poi", self.gates(), self.B, self.A)
        return weight + increment.flatten(0, 1).to(weight.dtype)


def rectified_places(net: nn.Module) -> dict[str, Place]:
    """Quantized linears by name."""
    return {
        name: place
        for name, place in places(net).items()
        if isinstance(place.owner, nn.Linear) and place.owner.get_submodule(place.weight_slot).bits != 32
    }


@register_method
class SPR2Q(TwoDQuant):
    """PQFR, rectifier group training and offline static routing calibration; see the module docstring."""

    options: ClassVar = {
        **COMMON,
        "features": Option("blocks", "whose outputs are features", choices=("blocks", "groups")),
        "rank": Option(8, "r of a rectifier", low=1, high=512),
        "rectifiers": Option(4, "N of a layer; 1 is PQFR alone", low=1, high=64),
        "gating": Option("logits", "what routes during training", choices=("logits", "network")),
        "routing": Option(500, "iterations at the end that train the routing alone", low=0, high=1e9),
    }
    betas: ClassVar = (0.9, 0.999)
    default_iterations = 12_500

    def attach(self) -> None:
        require_no_transforms(self.net, self)
        generator = self.generator(0)
        rank, count = int(self.settings["rank"]), int(self.settings["rectifiers"])
        network = self.settings["gating"] == "network"
        found = {}
        for name, place in rectified_places(self.net).items():
            if self.is_held(name):
                continue
            shape = place.layout.weight_shape
            parts = 3 if name.rpartition(".")[2] in SPLIT and shape[0] % 3 == 0 else 1
            found[name] = Rectifiers(shape, rank, count, parts, network, generator)
        if not found:
            beside = " outside of the modules around its scans" if self.held else ""
            any_linear = any(isinstance(place.owner, nn.Linear) for place in places(self.net).values())
            lack = "quantizes none of its own" if any_linear and not beside else f"has none{beside}"
            raise SpecError(
                f"SPR2Q rectifies linears, and {type(self.net).__name__} {lack}; TwoDQuant is what is left of it"
            )
        attach(self.net, found)
        self.rectifiers = list(found.values())
        super().attach()

    def trained(self) -> list[nn.Parameter]:
        return [*super().trained(), *(p for t in transforms_of(self.net).values() for p in t.parameters())]

    def plan(self, total: int) -> None:
        super().plan(total)
        routing = int(self.settings["routing"])
        if total <= routing:
            raise ValueError(
                f"SPR2Q: {total} iterations are all taken by routing: {routing} (the option); train longer, or make "
                "it smaller"
            )
        self.grouped = total - routing

    def progress(self, iteration: int) -> float:
        """Of each stage by itself: at the rate that the first one ends with the routing would not move."""
        if iteration < self.grouped:
            return iteration / self.grouped
        return (iteration - self.grouped) / max(1, self.total - self.grouped)

    def stage(self, iteration: int) -> object:
        return "rectifiers" if iteration < self.grouped else "routing"

    def schedule(self, iteration: int) -> None:
        super().schedule(iteration)
        routing = iteration >= self.grouped
        routers = {id(t.logits) for t in self.rectifiers}
        for transform in self.rectifiers:
            transform.choosing = transform.gate is not None and not routing
        if iteration in (0, self.grouped) or not self._started:
            self._started = True
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.requires_grad_(not routing or id(parameter) in routers)

    _started = False

    def load_training_state(self, state: dict[str, Any]) -> None:
        OptimizedMethod.load_training_state(self, state)
        self._started = False

    def finish(self, net: nn.Module) -> None:
        merge(net)
        settle_bounds(net)
