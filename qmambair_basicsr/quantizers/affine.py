"""Base of quantizers whose codes are ``clamp(round((x + offset) / scale), qmin, qmax)``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.limits import as_type, limited
from ..ops.lsq import lsq
from ..ops.lsq.reference import codes
from .base import Quantizer
from .forms import StaticForm
from .site import ACTIVATION, Site
from .spec import Option

GRANULARITY = Option("tensor", "parameters per tensor or per channel", choices=("tensor", "channel"))


class AffineQuantizer(Quantizer):
    """A quantizer whose :meth:`step_and_offset` gives step and offset, and whose rounding is straight-through.

    Args:
        granularity: ``tensor``, or ``channel`` for one step (and offset) per channel.

    Raises:
        SpecError: per channel where the site has no channels.
    """

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        granularity: str = "tensor",
    ) -> None:
        super().__init__(bits, site)
        self.dim = None
        if granularity == "channel":
            self.dim = self.channel_dim("granularity")
        self.groups = 1 if self.dim is None else site.channels

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Step (> 0) and offset in use for ``x``, (groups,) each and attached to the graph; offset None for 0."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        full = self._full(x)
        scale, offset = self.step_and_offset(full)
        return as_type(lsq(full, scale, offset, qmin=self.qmin, qmax=self.qmax, dim=self.dim), x.dtype)

    @torch.no_grad()
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._require_initialized()
        x = self._full(x)
        scale, offset = (None if p is None else p.to(x.dtype) for p in self.step_and_offset(x))
        integers = codes(x, scale, offset, self.qmin, self.qmax, self.dim).to(torch.int32)
        zero = torch.zeros_like(scale) if offset is None else offset / scale
        return integers, self._spread(scale, x), self._spread(zero, x)

    @torch.no_grad()
    def static_form(self) -> StaticForm | None:
        if self.dynamic:
            return None
        step, offset = self.step_and_offset(torch.zeros(1))
        return StaticForm(step, offset, self.qmin, self.qmax, self.dim)

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = limited(self._full(x))
        scale, offset = self.step_and_offset(x)
        offset = torch.zeros_like(scale) if offset is None else offset
        scale, offset = self._spread(scale, x), self._spread(offset, x)
        return torch.clamp((x + offset) / scale, self.qmin, self.qmax), scale, offset / scale

    def _rows(self, x: Tensor) -> Tensor:
        """View of ``x`` as (groups, elements of the group)."""
        return x.reshape(1, -1) if self.dim is None else x.movedim(self.dim, 0).flatten(1)

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        """View of a (groups,) parameter that broadcasts to ``x``, in its type."""
        parameter = parameter.to(x.dtype)
        if self.dim is None:
            return parameter.reshape(())
        shape = [1] * x.ndim
        shape[self.dim] = -1
        return parameter.reshape(shape)
