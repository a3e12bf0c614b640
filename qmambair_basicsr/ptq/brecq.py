"""BRECQ: block-wise reconstruction with AdaRound and QDrop; what FIMA-Q and APHQ-ViT have in common.

Li et al., ICLR 2021 (blocks), Nagel et al., ICML 2020 (AdaRound), Wei et al., ICLR 2022 (QDrop); settings of
GoatWu/APHQ-ViT and ShiheWang/FIMA-Q: V by Adam at 1e-3, bounds of activations by Adam at 4e-5 falling as a cosine, weight
0.01 of the rounding regulariser, whose exponent falls linearly from 20 to 2 after a warm-up of 20 %, half of the elements
dropped. A reconstruction loss is divided by its first value in each block.

Ranges start from 2DQuant's search (our decision: the releases search with other criteria), per tensor or channel as the
``quant:`` block says. The releases train the step of an activation and hold its zero point; here both bounds are trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers.sites import network_sites, parameter_sites
from ..quantizers.spec import Option
from .adaround import beta, harden, learned, regulariser, soften
from .blockwise import BlockReconstruction
from .bounds import TrainedBounds, settle_bounds, train_bounds
from .method import register_method
from .ranges import SAMPLES, quantized_sites, set_ranges
from .search import dobi
from .training import SEED

COMMON = {
    "batch": Option(4, "images of an iteration", low=1, high=4096),
    "drop": Option(0.5, "probability that an element stays in full precision", low=0, high=1),
    "lr": Option(1e-3, "learning rate of the rounding", low=0, high=1),
    "act_lr": Option(4e-5, "learning rate of the bounds of activations", low=0, high=1),
    "round_weight": Option(0.01, "weight of the rounding regulariser", low=0, high=1e6),
    "warmup": Option(0.2, "share of a block's iterations without it", low=0, high=0.99),
    "samples": Option(SAMPLES, "values of a tensor that the search for ranges looks at; 0: all", low=0, high=1e9),
    "seed": SEED,
}


@register_method
class BRECQ(BlockReconstruction):
    """Least squared error of each block's output; see the module docstring."""

    options: ClassVar = COMMON
    default_iterations = 4000

    def open(self, net: nn.Module) -> None:
        self.drop, self.batch = self.settings["drop"], int(self.settings["batch"])
        super().open(net)

    def attach(self) -> None:
        sites = quantized_sites(self.net, type(self).__name__)
        train_bounds([placed for placed in sites if placed.site.parameter is None])
        for placed in parameter_sites(self.net):
            if placed.site.role == "weight":
                soften(placed)

    def start(self, batches: Sequence[Tensor]) -> None:
        rounding = {id(placed.quantizer): placed for placed in learned(self.net)}
        sites = [placed for placed in network_sites(self.net) if placed.quantizer.bits != 32]
        plain = [
            placed._replace(quantizer=placed.quantizer.base) if id(placed.quantizer) in rounding else placed
            for placed in sites
        ]

        def choose(placed, sample):
            return dobi(sample.rows, placed.quantizer.bits, ends=(sample.low, sample.high))

        set_ranges(self.net, batches, plain, choose, int(self.settings["samples"]))
        for placed in rounding.values():
            placed.quantizer.start(placed.tensor())

    def prepare_unit(self, name: str, module: nn.Module, length: int) -> list[torch.optim.Optimizer]:
        self.first: dict[str, float] = {}
        rounding = [placed.quantizer.V for placed in learned(module)]
        bounds = [
            bound
            for placed in network_sites(module)
            if isinstance(placed.quantizer, TrainedBounds)
            for bound in (placed.quantizer.lower, placed.quantizer.upper)
        ]
        made = []
        for parameters, rate in ((rounding, self.settings["lr"]), (bounds, self.settings["act_lr"])):
            for parameter in parameters:
                parameter.requires_grad_(True)
            if parameters:
                made.append(torch.optim.Adam(parameters, rate))
        self._rounding = rounding
        return made

    def schedule(self, iteration: int, length: int) -> None:
        if len(self.optimizers) == 2:
            (group,) = self.optimizers[1].param_groups
            group["lr"] = self.settings["act_lr"] * (1 + math.cos(math.pi * iteration / length)) / 2

    def losses(
        self, iteration: int, length: int, result: Tensor, target: Tensor, chosen: list[int]
    ) -> dict[str, Tensor]:
        losses = {"l_rec": self.reconstruction(iteration, length, result, target)}
        if iteration >= self.settings["warmup"] * length and self._rounding:
            exponent = beta(iteration, length, self.settings["warmup"])
            losses["l_round"] = self.settings["round_weight"] * sum(regulariser(v, exponent) for v in self._rounding)
        return losses

    def reconstruction(self, iteration: int, length: int, result: Tensor, target: Tensor) -> Tensor:
        """Distance of a block's output to its target."""
        return self.relative("rec", (result - target).square().mean(), target.square().mean())

    def relative(self, name: str, loss: Tensor, size: Tensor) -> Tensor:
        """A loss divided by its first value in this block.

        With activations in full precision that is next to nothing, as soft rounding begins at the weights themselves;
        1e-4 of ``size``, what the loss would be of an output of zeros, is the least that counts.
        """
        return loss / self.first.setdefault(name, max(loss.item(), 1e-4 * size.item(), 1e-30))

    def unit_state(self) -> dict[str, Any]:
        return {"first": dict(self.first)} if self.unit is not None else {}

    def load_unit_state(self, state: dict[str, Any]) -> None:
        self.first = dict(state["first"])

    def finish(self, net: nn.Module) -> None:
        harden(net)
        settle_bounds(net)
