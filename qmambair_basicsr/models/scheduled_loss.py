"""``schedule:`` of a loss: its weight over the iterations, such as the ground truth late or the teacher early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.losses import build_loss
from torch import Tensor, nn

from .ramp import Ramp


class ScheduledLoss(nn.Module):
    """A loss times a factor that follows the iteration.

    Attributes:
        loss: whose ``loss_weight`` the factor comes on top of.
        factor: what it is multiplied with, () - a tensor, so that a recorded step reads it anew.
        active: whether the factor differs from 0: what counts for nothing need not be computed.
    """

    factor: Tensor

    def __init__(self, loss: nn.Module, ramp: Ramp) -> None:
        super().__init__()
        self.loss, self._ramp, self.active = loss, ramp, True
        self.register_buffer("factor", torch.ones(()), persistent=False)

    def begin(self, iteration: int, total: int) -> None:
        """Take the factor of an iteration."""
        value = self._ramp.at(iteration, total)
        self.factor.fill_(value)
        self.active = value != 0

    @property
    def layers(self):
        """Of a loss of features."""
        return self.loss.layers

    def forward(self, *given: Any) -> Tensor:
        return self.factor * self.loss(*given)


def build(section: Mapping | None, where: str) -> nn.Module | None:
    """The loss that ``{type: ..., schedule: {from: 0, to: 1}}`` describes; None for none.

    Args:
        section: of the option file; ``schedule`` may be left out.
        where: its path, for messages.

    Raises:
        ValueError: a schedule that is none.
    """
    if not section:
        return None
    options = dict(section)
    schedule = options.pop("schedule", None)
    loss = build_loss(options)
    return loss if schedule is None else ScheduledLoss(loss, Ramp.read(schedule, f"{where}: schedule"))


def active(loss: nn.Module | None) -> bool:
    """Whether there is a loss that counts in this iteration."""
    return loss is not None and getattr(loss, "active", True)
