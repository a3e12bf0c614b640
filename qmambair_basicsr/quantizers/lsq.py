"""LSQ: learned step size quantization.

Esser et al., "Learned Step Size Quantization", ICLR 2020.

=============  =====================================================  ======================
paper          meaning                                                here
=============  =====================================================  ======================
s              step size, learned                                     ``scale``
v, v-bar       data, its code: round(clip(v / s, -Q_N, Q_P)) (eq. 1)   ``to_int(...)[0]``
v-hat          v-bar * s (eq. 2)                                      ``forward(...)``
g              gradient scale 1 / sqrt(numel * Q_P) (section 2.2)     ``_gradient_scale``
=============  =====================================================  ======================

Gradient to s (eq. 3): round(v/s) - v/s inside the range, -Q_N or Q_P outside. Initial s: 2 mean|v| / sqrt(Q_P),
averaged over the calibration batches (paper: first batch).

Activations that are never negative use codes 0..2^n - 1 as in the paper. Here this is the signed grid moved
by 2^(n-1) steps, so codes always fit a signed n-bit integer, ``zero`` is -2^(n-1) there. The ``signed``
buffer is read once after calibration or loading, since reading it at every forward would stall a GPU.

An optimizer step can carry s to or past zero, where the formula divides by zero or mirrors the grid. The step
in use is max(|s|, 1e-8), with gradient sign(s); for s > 1e-8 that is the paper's.

``granularity: channel`` learns one step per channel of the tensor's channel dimension (lsq-net's option);
the gradient scale then counts the elements that share a step.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops.lsq import LSQItem, lsq_together
from .affine import AffineQuantizer
from .groups import GRANULARITY
from .registry import register_quantizer
from .site import ACTIVATION, Site
from .ste import learned_step

SCALE_FLOOR = 1e-8
INITIAL_FLOOR = 1e-6  # an all-zero tensor starts here, well above SCALE_FLOOR
NEGATIVE = -1e-5  # the authors' border between "signed" and "never negative"


@register_quantizer
class LSQ(AffineQuantizer):
    """Uniform quantizer with a learned step; see the module docstring.

    Args:
        granularity: ``tensor`` (one step), ``channel`` or a group of channels.

    Raises:
        SpecError: per channel without ``channels`` and ``channel_dim``.
    """

    options: ClassVar = {"granularity": GRANULARITY}
    floor: float | None = SCALE_FLOOR  # of the step in use; None: the step as it is

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        granularity: str = "tensor",
    ) -> None:
        super().__init__(bits, site, granularity=granularity)
        self.scale = nn.Parameter(torch.ones(self.groups))
        self.register_parameter("offset", None)
        self.register_buffer("signed", torch.tensor(True))
        self._negative: bool | None = None

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        signed = self._is_signed(x)
        magnitude = self._rows(x).abs().mean(1) if self.groups > 1 else x.abs().mean().reshape(1)
        return {"scale": (2 * magnitude / self._largest(signed).sqrt()).clamp_min(INITIAL_FLOOR), "signed": signed}

    def observe(self, x: Tensor) -> None:
        self._negative = None
        super().observe(x)

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        scale = learned_step(self.scale, self.floor, self._gradient_scale(x))
        shift = self._unsigned_shift()
        if not shift:
            return scale, self.offset
        moved = shift * scale
        if self.offset is None:
            return scale, moved
        if self.cut is not None and self.offset.shape != moved.shape:
            moved = self.cut.spread_over(moved)
        return scale, self.offset + moved

    def quantize(self, x: Tensor) -> Tensor:
        item = self.item(x)
        return super().quantize(x) if item is None else lsq_together([item])[0]

    def item(self, x: Tensor) -> LSQItem | None:
        if not self._is_negative() or self.cut is not None:  # the offset depends on the step; rows are cut
            return None
        return LSQItem(x, self.scale, self.offset, self.qmin, self.qmax, self.dim, self.floor, self._gradient_scale(x))

    def parameter_health(self) -> dict[str, float]:
        return {"scale": self.scale.detach().abs().mean().item()}

    def _is_signed(self, x: Tensor) -> Tensor:
        if self.role == "weight":
            return torch.ones((), dtype=torch.bool, device=x.device)
        return x.amin() < NEGATIVE

    def _is_negative(self) -> bool:
        """Whether the grid has negative codes; read once, then remembered, as ``is_initialized`` does."""
        if self._negative is None:
            self._negative = bool(self.signed)
        return self._negative

    def _unsigned_shift(self) -> float:
        """Steps by which the signed grid is moved: -2^(n-1) when the data is never negative, else 0."""
        return 0.0 if self._is_negative() else float(self.qmin)

    def _largest(self, signed: Tensor) -> Tensor:
        """Q_P of the paper: 2^(n-1) - 1 signed, 2^n - 1 unsigned."""
        return torch.where(signed, float(self.qmax), float(self.qmax - self.qmin))

    def _gradient_scale(self, x: Tensor) -> float:
        shared = x.numel() * self.copies / self.groups
        return (shared * (self.qmax if self._is_negative() else self.qmax - self.qmin)) ** -0.5

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._negative = None
        super()._load_from_state_dict(*args, **kwargs)
