"""Block-AP: all parameters of one block after the other, weights, biases and quantizers, are trained to return the block's
full-precision output.

Chen et al., "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models", ACL 2025, section 3.2: what a
quantization-aware training of the whole network may start from. Any quantizer can be trained so, with its own gradient.

Left open by the paper or ours: Adam without weight decay, a cosine for the rates, and the loss divided by the mean square
of the target. The paper trains for two epochs of 4096 texts; here iterations are shared out evenly among the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..calibration import calibrate
from ..layers.sites import quantizers_of
from ..quantizers.spec import Option
from .blockwise import BlockReconstruction
from .method import register_method
from .training import SEED


@register_method
class BlockAP(BlockReconstruction):
    """Least squared error of each block's output, over all of its parameters; see the module docstring."""

    options: ClassVar = {
        "batch": Option(4, "images of an iteration", low=1, high=4096),
        "drop": Option(0.0, "probability that an element stays in full precision", low=0, high=1),
        "lr": Option(2e-4, "learning rate of weights and biases at the start of a block", low=0, high=1),
        "quantizer_lr": Option(1e-3, "learning rate of quantizers at the start of a block", low=0, high=1),
        "seed": SEED,
    }
    default_iterations = 1000

    def open(self, net: nn.Module) -> None:
        self.drop, self.batch = self.settings["drop"], int(self.settings["batch"])
        super().open(net)

    def start(self, batches: Sequence[Tensor]) -> None:
        calibrate(self.net, batches)

    def prepare_unit(self, name: str, module: nn.Module, length: int) -> list[torch.optim.Optimizer]:
        module.requires_grad_(True)
        own = {id(p) for quantizer in quantizers_of(module).values() for p in quantizer.parameters()}
        weights = [p for p in module.parameters() if id(p) not in own]
        grids = [p for p in module.parameters() if id(p) in own]
        return [
            torch.optim.Adam(parameters, self.settings[rate])
            for parameters, rate in ((weights, "lr"), (grids, "quantizer_lr"))
            if parameters
        ]

    def schedule(self, iteration: int, length: int) -> None:
        share = (1 + math.cos(math.pi * iteration / length)) / 2
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * share

    def losses(
        self, iteration: int, length: int, result: Tensor, target: Tensor, chosen: list[int]
    ) -> dict[str, Tensor]:
        return {"l_rec": (result - target).square().mean() / target.square().mean().clamp_min(1e-30)}

    def finish(self, net: nn.Module) -> None:
        """The network is an ordinary quantized one all the time."""
