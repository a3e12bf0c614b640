"""FIMA-Q: block-wise reconstruction weighted by an approximation of the Fisher information of a block's output.

Wu et al., "FIMA-Q: Post-Training Quantization for Vision Transformers by Fisher Information Matrix Approximation", CVPR
2025; checked against ShiheWang/FIMA-Q. With d the error of a block's output in absolute value, |g_k| and |d_k| the gradients
of the task loss and the errors seen at the k-th update, averaged over images::

    low rank   d^T G (D D^T)^-1 G^T d          diagonal   mean d^2 |g|          dplr: their sum

each divided by its first value since the last update; there are ``rank`` updates in each block, evenly spaced. The task loss
of the release is a KL divergence of class scores; here it is the L1 distance of the restored images (our decision).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..quantizers.spec import Option
from .blockwise import output_gradient
from .brecq import BRECQ, COMMON
from .method import register_method


class FisherLoss:
    """Loss of a block's output.

    Args:
        kind: ``dplr``, ``diag`` or ``low_rank``.

    Attributes:
        gradients, errors: one row for each update, (k, elements).
        first: first values of the two terms since the last update.
    """

    def __init__(self, kind: str = "dplr") -> None:
        self.kind = kind
        self.gradients = self.errors = torch.zeros(0, 0)
        self.first: dict[str, float] = {}

    def update(self, gradient: Tensor, error: Tensor) -> None:
        """Take a row of each, (elements,), both non-negative."""
        rows = gradient.flatten()[None], error.flatten()[None]
        if len(self.gradients):
            rows = tuple(torch.cat(pair) for pair in zip((self.gradients, self.errors), rows, strict=True))
        self.gradients, self.errors = rows
        self.first = {}

    def __call__(self, result: Tensor, target: Tensor) -> Tensor:
        """Scalar; 2 at the first call after an update."""
        error = (result - target).flatten(1)
        terms = []
        if self.kind != "diag":
            seen = error.abs() @ self.gradients.T  # (N, k)
            inverse = torch.linalg.pinv(self.errors @ self.errors.T, hermitian=True)
            terms.append(("low", (seen @ inverse * seen).sum(1).abs().mean()))
        if self.kind != "low_rank":
            terms.append(("diag", (error.square() * self.gradients.mean(0)).mean()))
        weight = 2 / len(terms)
        return sum(weight * loss / self.first.setdefault(name, max(loss.item(), 1e-30)) for name, loss in terms)


@register_method
class FIMAQ(BRECQ):
    """BRECQ with the Fisher information's loss; see the module docstring."""

    options: ClassVar = {
        **COMMON,
        "fisher": Option("dplr", "which approximation", choices=("dplr", "diag", "low_rank")),
        "rank": Option(5, "updates in each block", low=1, high=100),
        "images": Option(8, "calibration images that an update looks at", low=1, high=4096),
    }

    def prepare_unit(self, name, module, length):
        self.fisher = FisherLoss(self.settings["fisher"])
        return super().prepare_unit(name, module, length)

    def reconstruction(self, iteration: int, length: int, result: Tensor, target: Tensor) -> Tensor:
        every = max(1, -(-length // int(self.settings["rank"])))
        if iteration % every == 0:
            self.fisher.update(*self._measure())
        return self.fisher(result, target)

    def _measure(self) -> tuple[Tensor, Tensor]:
        """Mean magnitude of gradient and error of the block's output, over images."""
        gradients, errors = [], []
        module = self.net.get_submodule(self.unit)
        for index, image in enumerate(self.images[: int(self.settings["images"])]):
            with torch.no_grad():
                value = self.behind.run(module, self.behind.inputs[index])
                restored = self.full(image)
            gradient = output_gradient(self.full, self.unit, image, value, lambda y, t=restored: (y - t).abs().mean())
            gradients.append(gradient.abs())
            errors.append((value - self.targets.outputs[index]).abs())
        return torch.cat(gradients).mean(0), torch.cat(errors).mean(0)

    def unit_state(self) -> dict[str, Any]:
        if self.unit is None:
            return {}
        fisher = self.fisher
        kept = {"gradients": fisher.gradients, "errors": fisher.errors, "first": dict(fisher.first)}
        return {**super().unit_state(), "fisher": kept}

    def load_unit_state(self, state: dict[str, Any]) -> None:
        super().load_unit_state(state)
        kept = state["fisher"]
        self.fisher.gradients, self.fisher.errors = kept["gradients"], kept["errors"]
        self.fisher.first = dict(kept["first"])
