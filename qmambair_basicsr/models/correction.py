"""``quant_train: correction``: the last iterations start from the averaged weights and train quantizers and biases only."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from .quant_options import CorrectionOptions

WEIGHTS, BIASES, QUANTIZERS = range(3)
"""Parameter groups of a run with a correction."""


class Correction:
    """When the correction runs, and at which rates.

    The weights keep their place in the optimizer and get the rate 0, which moves nothing: a backward pass over fewer
    parameters would be another one for DDP and for recorded steps.

    Args:
        options: see :class:`CorrectionOptions`.
        lr: ``train: optim_g: lr``.
        factor: ``quant_train: lr_factor``.
        total: iterations of the training.

    Raises:
        ValueError: there are no iterations in front of it.
    """

    def __init__(self, options: CorrectionOptions, lr: float, factor: float, total: int) -> None:
        if options.iterations >= total:
            raise ValueError(
                f"quant_train: correction: iterations must be fewer than train: total_iter, {total}, got {options.iterations}"
            )
        self.first = total - options.iterations + 1
        self._iterations = options.iterations
        self._lr = lr / 10 if options.lr is None else options.lr
        self._factor = factor

    def begins(self, iteration: int) -> bool:
        """Whether an iteration is the first of the correction."""
        return iteration == self.first

    def running(self, iteration: int) -> bool:
        """Whether an iteration belongs to the correction."""
        return iteration >= self.first

    def set_rates(self, optimizer: Optimizer, iteration: int) -> None:
        """Put the rates of an iteration of the correction into the optimizer's groups."""
        share = (iteration - self.first) / self._iterations
        lr = self._lr * (1 + math.cos(math.pi * share)) / 2
        for group, rate in zip(optimizer.param_groups, (0.0, lr, lr * self._factor), strict=True):
            group["lr"] = rate
