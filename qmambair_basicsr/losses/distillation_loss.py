"""Losses of a quantized network against its full-precision teacher.

2DQuant (Liu et al., NeurIPS 2024) and SPR2Q train against
``L1(out_Q, out_FP) + lambda * sum_l || F_l / ||F_l|| - F'_l / ||F'_l|| ||^2``, F and F' being the outputs of block l in
the student and the teacher, norms those of the whole tensor (Frobenius); their releases use lambda = 5.

Where the releases differ from the formula: both take the mean over elements in place of the sum, and SPR2Q's holds the
norms constant in the gradient (and divides the mean by the number of elements once more). The formula is the default
here; ``reduction: mean`` and ``detach_norm: true`` are the releases' choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

_PIXEL = {"l1": F.l1_loss, "mse": F.mse_loss}


@LOSS_REGISTRY.register()
class PixelDistillationLoss(nn.Module):
    """Distance between the outputs of student and teacher.

    Args:
        loss_weight: factor on the loss.
        criterion: ``l1`` or ``mse``, averaged over all elements.

    Raises:
        ValueError: an unknown criterion.
    """

    def __init__(self, loss_weight: float = 1.0, criterion: str = "l1") -> None:
        super().__init__()
        if criterion not in _PIXEL:
            raise ValueError(f"PixelDistillationLoss: criterion {criterion!r} is unknown; use {' or '.join(_PIXEL)}")
        self.loss_weight = loss_weight
        self.criterion = criterion

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar loss of two images of one shape, (B, C, H, W); no gradient reaches the teacher.

        Raises:
            ValueError: shapes differ.
        """
        _same_shape(student, teacher, "output")
        return self.loss_weight * _PIXEL[self.criterion](student, teacher.detach())


@LOSS_REGISTRY.register()
class FeatureAlignmentLoss(nn.Module):
    """Sum over blocks of the squared distance between normalised features (see the module docstring).

    Args:
        layers: name patterns of the modules to compare, for example ``["layers.*.residual_group.blocks.*"]``; None for
            the blocks that the network names itself (``NetworkInfo.blocks``).
        loss_weight: lambda.
        reduction: ``sum`` over the elements of a block (the formula) or ``mean`` (the releases).
        detach_norm: hold the student's norm constant in the gradient (SPR2Q's release).
        eps: added to norms, against dividing by zero.

    Raises:
        ValueError: no layers, or an unknown reduction.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        loss_weight: float = 5.0,
        reduction: str = "sum",
        detach_norm: bool = False,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.layers = [layers] if isinstance(layers, str) else layers
        if self.layers is not None and not self.layers:
            raise ValueError("FeatureAlignmentLoss: layers is empty; give name patterns of the blocks to compare")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"FeatureAlignmentLoss: reduction {reduction!r} is unknown; use sum or mean")
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.detach_norm = detach_norm
        self.eps = eps

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Scalar loss of two lists of features, block by block of one shape; no gradient reaches the teacher.

        Raises:
            ValueError: numbers of blocks or shapes differ.
        """
        if len(student) != len(teacher):
            raise ValueError(f"features of {len(student)} student blocks against {len(teacher)} teacher blocks")
        total = student[0].new_zeros(())
        for index, (feature, target) in enumerate(zip(student, teacher, strict=True)):
            _same_shape(feature, target, f"feature {index}")
            norm = torch.linalg.vector_norm(feature)
            norm = norm.detach() if self.detach_norm else norm
            target = target.detach()
            difference = feature / (norm + self.eps) - target / (torch.linalg.vector_norm(target) + self.eps)
            squares = difference.square()
            total = total + (squares.sum() if self.reduction == "sum" else squares.mean())
        return self.loss_weight * total


def _same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"{what}: student {tuple(student.shape)} against teacher {tuple(teacher.shape)}")
