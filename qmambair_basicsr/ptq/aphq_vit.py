"""APHQ-ViT: block-wise reconstruction weighted by how the task loss bends at a block's output.

Wu et al., "APHQ-ViT: Post-Training Quantization with Average Perturbation Hessian Based Reconstruction for Vision
Transformers", CVPR 2025; checked against GoatWu/APHQ-ViT. Importance of an element of a block's output: the mean over images
of ``|g(out + e) - g(out - e)|``, g the gradient of the task loss; loss ``2 mean(importance (y - t)^2)`` over its first value.

The release perturbs by 1e-6 in float32, where rounding is 21 to 71 % of the result; ``step`` is larger here. Its task loss is
a KL divergence of class scores, here it is the squared distance of the restored images, which is smooth where both are
equal (L1 is not). The paper also trains each MLP to do with ReLU instead of GELU, which makes another network of it; that
is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..quantizers.spec import Option
from .blockwise import output_gradient
from .brecq import BRECQ, COMMON
from .method import register_method


def perturbed_importance(gradient: Callable[[Tensor], Tensor], out: Tensor, step: float) -> Tensor:
    """Mean over images of ``|g(out + e) - g(out - e)|``, (1, ...).

    Args:
        gradient: out -> gradient of the task loss, of its shape.
        out: output of a block, (N, ...).
        step: e.
    """
    return (gradient(out + step) - gradient(out - step)).abs().mean(0, keepdim=True)


@register_method
class APHQViT(BRECQ):
    """BRECQ with an importance for each element; see the module docstring."""

    options: ClassVar = {
        **COMMON,
        "step": Option(1e-3, "perturbation, in units of the output's standard deviation", low=1e-9, high=1),
        "images": Option(8, "calibration images that the importance comes from", low=1, high=4096),
    }

    def enter_unit(self, name: str, resumed: bool) -> None:
        if resumed:
            return
        total = torch.zeros(())
        some = self.images[: int(self.settings["images"])]
        for image, out in zip(some, self.targets.outputs, strict=False):
            with torch.no_grad():
                restored = self.full(image)

            def gradient(value: Tensor, image: Tensor = image, restored: Tensor = restored) -> Tensor:
                return output_gradient(self.full, name, image, value, lambda y: (y - restored).square().sum())

            step = self.settings["step"] * max(float(out.std()), 1e-12)
            total = total + perturbed_importance(gradient, out, step)
        importance = total / len(some)
        self.importance = importance / importance.mean().clamp_min(1e-30)  # the loss is relative to its first value

    def reconstruction(self, iteration: int, length: int, result: Tensor, target: Tensor) -> Tensor:
        return 2 * self.relative(
            "rec", ((result - target).square() * self.importance).mean(), (target.square() * self.importance).mean()
        )

    def unit_state(self) -> dict[str, Any]:
        return {} if self.unit is None else {**super().unit_state(), "importance": self.importance}

    def load_unit_state(self, state: dict[str, Any]) -> None:
        super().load_unit_state(state)
        self.importance = state["importance"]
