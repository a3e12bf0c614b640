"""The grid of a quantizer in the form that a network of integers is made from: by ``lowering``, and export through it.

A quantizer whose codes are ``clamp(round((x + entering + offset) / step), lowest, highest)`` and whose values are
``step * code - offset`` gives one of two forms: with a constant grid, or with a grid that follows statistics of the
tensor. One that has neither (RFA and N2UQ place their code borders elsewhere) cannot quantize activations of an integer
network; weights need no form, their codes are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class StaticForm:
    """A constant grid.

    Attributes:
        step: > 0, (G,) or (), units of the tensor.
        offset: shaped as step, or one value for each index of ``dim``; None for 0.
        lowest, highest: codes.
        dim: dimension of the tensor that steps or offsets lie along; None for one of each.
        entering: what is added to the tensor and does not leave it (QuantSR), () or one value for each index of
            ``entering_dim``; None for 0.
        entering_dim: see entering.
    """

    step: Tensor
    offset: Tensor | None
    lowest: float
    highest: float
    dim: int | None = None
    entering: Tensor | None = None
    entering_dim: int | None = None


class DynamicForm(nn.Module):
    """A grid that follows the tensor. Parameters of the rule are buffers of the subclass.

    Args:
        per_sample: every sample (index of dimension 0) has a grid of its own; otherwise one for the whole tensor.
    """

    def __init__(self, per_sample: bool):
        super().__init__()
        self.per_sample = per_sample

    def grid(self, statistics: Tensor) -> Tensor:
        """The grid that follows from statistics, in operators that torch's exporter knows.

        Args:
            statistics: (G, 4): mean, unbiased standard deviation (0 for a single value), minimum and maximum of the
                values of each group.

        Returns:
            (G, 4): step (> 0), offset, lowest and highest code.
        """
        raise NotImplementedError
