"""Base of quantizers whose codes are ``clamp(round((x + offset) / scale), qmin, qmax)``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.limits import as_type, limited
from ..ops.lsq import lsq
from ..ops.lsq.reference import codes
from .base import Quantizer
from .forms import StaticForm
from .groups import GRANULARITY as GRANULARITY
from .groups import groups_of
from .site import ACTIVATION, Site


class AffineQuantizer(Quantizer):
    """A quantizer whose :meth:`step_and_offset` gives step and offset, and whose rounding is straight-through.

    Args:
        granularity: ``tensor``, ``channel`` for one step (and offset) per channel, or per group of channels
            (``groups.py``).

    Raises:
        SpecError: per channel or group where the site has no channels.
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
        self.cut = groups_of(site, granularity, self._label())
        self.groups = 1 if self.dim is None else site.channels
        if self.cut is not None:
            self.groups = self.cut.total

    def step_and_offset(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Step (> 0) and offset in use for ``x``, (groups,) each and attached to the graph; offset None for 0."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        full = self._full(x)
        scale, offset = self.step_and_offset(full)
        if self.cut is None:
            return as_type(lsq(full, scale, offset, qmin=self.qmin, qmax=self.qmax, dim=self.dim), x.dtype)
        given = self._operands(full, scale, offset)
        return as_type(lsq(*given[:3], qmin=self.qmin, qmax=self.qmax, dim=given[3]).reshape(x.shape), x.dtype)

    @torch.no_grad()
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._require_initialized()
        x = self._full(x)
        scale, offset = (None if p is None else p.to(x.dtype) for p in self.step_and_offset(x))
        integers = self._codes(x, scale, offset).to(torch.int32)
        if self.cut is not None and offset is not None:  # there may be more offsets than steps
            scale, offset = self.cut.broadcast(scale, x), self.cut.broadcast(offset, x)
            return integers, scale, offset / scale
        zero = torch.zeros_like(scale) if offset is None else offset / scale
        return integers, self._spread(scale, x), self._spread(zero, x)

    @torch.no_grad()
    def static_form(self) -> StaticForm | None:
        if self.dynamic or (self.cut is not None and self.cut.rows):
            return None
        step, offset = self.step_and_offset(torch.zeros(1))
        if self.cut is None:
            return StaticForm(step, offset, self.qmin, self.qmax, self.dim)
        step, offset = (None if p is None else self.cut.spread_over(p) for p in (step, offset))
        return StaticForm(step, offset, self.qmin, self.qmax, self.cut.along)

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = limited(self._full(x))
        scale, offset = self.step_and_offset(x)
        offset = torch.zeros_like(scale) if offset is None else offset
        scale, offset = self._spread(scale, x), self._spread(offset, x)
        return torch.clamp((x + offset) / scale, self.qmin, self.qmax), scale, offset / scale

    def _operands(self, x: Tensor, scale: Tensor, offset: Tensor | None) -> tuple:
        """Tensor, step, offset and their dimension as the operator ``lsq`` takes them."""
        if self.cut is None:
            return x, scale, offset, self.dim
        scale, offset = (None if p is None else self.cut.spread_over(p) for p in (scale, offset))
        return self.cut.folded(x), scale, offset, self.cut.along

    def _codes(self, x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        """Integer codes in floating point, shape of ``x``; NaN stays NaN."""
        x_, scale, offset, dim = self._operands(x, scale, offset)
        return codes(x_, scale, offset, self.qmin, self.qmax, dim).reshape(x.shape)

    def _rows(self, x: Tensor) -> Tensor:
        """``x`` as (groups, elements of the group)."""
        if self.cut is not None:
            return self.cut.apart(x)
        return x.reshape(1, -1) if self.dim is None else x.movedim(self.dim, 0).flatten(1)

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        """A (groups,) parameter that broadcasts to ``x``, in its type."""
        parameter = parameter.to(x.dtype)
        if self.cut is not None:
            return self.cut.broadcast(parameter, x)
        if self.dim is None:
            return parameter.reshape(())
        shape = [1] * x.ndim
        shape[self.dim] = -1
        return parameter.reshape(shape)
