"""RFA: range-floating flexible allocator, the weight quantizer of Q-MambaIR.

"Q-MambaIR", section 3.4 (eq. 7, Algorithm 1); the authors' release calls it ``oneRK_U``.

=============  ====================================================================  ================
paper          meaning                                                               here
=============  ====================================================================  ================
alpha          step size, learned                                                    ``scale`` (1,)
beta           added before and subtracted after, learned, starts at 0               ``offset`` (1,)
T_i            thresholds in units of codes, learned, start at Q_N + i               ``thresholds`` (2^n,)
q_i            levels, Q_N + i                                                       codes
Q_N, Q_P       -2^(n-1), 2^(n-1) - 1                                                 ``qmin``, ``qmax``
=============  ====================================================================  ================

Forward: v = clamp((w + beta) / alpha, Q_N, Q_P) takes level q_k for the largest k >= 1 with
v > (T_{k-1} + T_k) / 2, else q_0; at the start this is ordinary rounding (ties down). Backward: the gradient of
the piecewise linear curve through the points (T_i, q_i), slope 0.1 outside them; formulas in
``ops/rfa/README.md``. Only alpha has LSQ's gradient scale. Initial alpha: 2 mean|w| / sqrt(Q_P).

Paper against release: Algorithm 1 counts thresholds T_0..T_N, the release has 2^n of them (the last is never
used); eq. 7 says w in [T_i, T_{i+1}), the release compares with midpoints of neighbours; line 15 is dead, since
line 21 overwrites the same region. The release's unsigned case pairs unsigned thresholds with signed levels;
weights are always signed here. In all this the release is followed otherwise.

``mode: official`` uses thresholds and alpha as they are. Nothing keeps thresholds apart there: two crossed ones
give a negative slope, two equal ones an infinite one, then NaN in every weight.

``mode: stable`` (default) uses T_i = max over j <= i of (T_j + (i - j) min_gap): sorted, gaps of at least
``min_gap``, hence slopes of at most 1 / min_gap (10 by default). Thresholds that satisfy this already, official
ones included, are used unchanged, so states are interchangeable; one that a lower neighbour pushes up leaves its
gradient to that neighbour. alpha is used as max(|alpha|, 1e-8), and with ``search: mse`` (default) it starts at
the multiple of 2 mean|w| / sqrt(Q_P), between 1/4 and 2, that has the least squared error.

``granularity: channel`` (not of the paper) learns alpha and beta for each output channel, (C,), a group of ``groups.py``
for each group; the thresholds, in units
of codes, stay those of the tensor.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ops.limits import as_type, limited
from ..ops.rfa import RFAItem, rfa_together
from ..ops.rfa.item import order
from ..ops.rfa.reference import codes, surrogate
from .base import Quantizer
from .groups import GRANULARITY, groups_of
from .lsq import INITIAL_FLOOR, SCALE_FLOOR
from .lsq_offset import MODE, SEARCH
from .registry import register_quantizer
from .search import best_symmetric_step
from .site import WEIGHT, Site
from .spec import Option
from .ste import learned_step


class _Ordered(torch.autograd.Function):
    """Sorted thresholds with gaps of at least ``min_gap``: one node, whose gradient is no scattered addition."""

    @staticmethod
    def forward(ctx, thresholds: Tensor, min_gap: float) -> Tensor:
        ordered, source = order(thresholds, min_gap)
        ctx.save_for_backward(source)
        return ordered.view_as(ordered) if source is None else ordered

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (source,) = ctx.saved_tensors
        return grad if source is None else torch.zeros_like(grad).index_add_(0, source, grad), None


@register_quantizer
class RFA(Quantizer):
    """Quantizer with learned thresholds; see the module docstring.

    Args:
        mode: ``stable`` or ``official``.
        search: ``mse`` or ``none``, how a stable quantizer starts.
        min_gap: smallest distance of neighbouring thresholds in stable mode, in steps.
        granularity: ``tensor``, ``channel`` or a group of channels.

    Raises:
        SpecError: per channel where the site has no channels.
    """

    options: ClassVar = {
        "mode": MODE,
        "search": SEARCH,
        "min_gap": Option(0.1, "smallest gap of thresholds, in steps (stable)", low=1e-3, high=1.0),
        "granularity": GRANULARITY,
    }

    def __init__(
        self,
        bits: int,
        site: Site = WEIGHT,
        *,
        mode: str = "stable",
        search: str = "mse",
        min_gap: float = 0.1,
        granularity: str = "tensor",
    ) -> None:
        super().__init__(bits, site)
        self.dim = self.channel_dim("granularity") if granularity == "channel" else None
        self.cut = groups_of(site, granularity, self._label())
        groups = 1 if self.dim is None else site.channels
        if self.cut is not None:
            groups = self.cut.total
        self.common = self.dim is None and self.cut is None  # one step for the tensor, which the operator takes
        self.mode = mode
        self.search = search if mode == "stable" else "none"
        self.min_gap = min_gap
        self.first_batch_only = mode == "official"
        self.floor = None if mode == "official" else SCALE_FLOOR  # of the step in use; None: the step as it is
        self.scale = nn.Parameter(torch.ones(groups))
        self.offset = nn.Parameter(torch.zeros(groups))
        self.thresholds = nn.Parameter(torch.arange(self.qmin, self.qmax + 1, dtype=torch.float32))

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        rows = self._full(x)
        if self.cut is not None:
            rows = self.cut.apart(rows)
        else:
            rows = rows.reshape(1, -1) if self.dim is None else rows.movedim(self.dim, 0).flatten(1)
        scale = (2 * rows.abs().mean(1) / self.qmax**0.5).clamp_min(INITIAL_FLOOR)
        if self.search == "mse":
            scale = best_symmetric_step(rows, scale, self.qmin, self.qmax)
        return {"scale": scale}

    def quantize(self, x: Tensor) -> Tensor:
        if self.common:
            return rfa_together([self.item(x)])[0]
        full = self._full(x)
        step, offset, thresholds = self._grid(full)
        unit, nothing = torch.ones_like(thresholds[:1]), torch.zeros_like(thresholds[:1])
        given = RFAItem((limited(full) + offset) / step, unit, nothing, thresholds, self.qmin)
        return as_type((rfa_together([given])[0] - offset / step) * step, x.dtype)

    def item(self, x: Tensor) -> RFAItem | None:
        if not self.common:
            return None
        min_gap = None if self.mode == "official" else self.min_gap
        parameters = self.scale, self.offset, self.thresholds
        return RFAItem(x, *parameters, self.qmin, self.floor, self._gradient_scale(x), min_gap)

    @torch.no_grad()
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._require_initialized()
        x = self._full(x)
        step, offset, thresholds = self._grid(x)
        if self.common:
            integers = codes(x, step.reshape(1), offset.reshape(1), thresholds, self.qmin)
        else:
            unit, nothing = torch.ones_like(thresholds[:1]), torch.zeros_like(thresholds[:1])
            integers = codes((limited(x) + offset) / step, unit, nothing, thresholds, self.qmin)
        return integers.to(torch.int32), step, offset / step

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = limited(self._full(x))
        step, offset, thresholds = self._grid(x)
        v = torch.clamp((x + offset) / step, self.qmin, self.qmax)
        return surrogate(v, thresholds, self.qmin), step, offset / step

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step and offset that broadcast to a tensor, and thresholds in use, in its type."""
        step, offset = (self._spread(p.to(x.dtype), x) for p in (self._step(x), self.offset))
        return step, offset, self.ordered_thresholds().to(x.dtype)

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        if self.common:
            return parameter.reshape(())
        if self.cut is not None:
            return self.cut.broadcast(parameter, x)
        shape = [1] * x.ndim
        shape[self.dim] = -1
        return parameter.reshape(shape)

    def ordered_thresholds(self) -> Tensor:
        """Thresholds in use, (2^n,): as stored in official mode, sorted with a smallest gap in stable mode."""
        return self.thresholds if self.mode == "official" else _Ordered.apply(self.thresholds, self.min_gap)

    def parameter_health(self) -> dict[str, float]:
        thresholds = self.thresholds.detach()
        start = torch.arange(self.qmin, self.qmax + 1, device=thresholds.device)
        return {
            "scale": self.scale.detach().mean().item(),
            "offset": self.offset.detach().mean().item(),
            "crossed_thresholds": float((thresholds.diff() <= 0).sum()),
            "moved_thresholds": (thresholds - start).abs().mean().item(),
        }

    def _step(self, x: Tensor) -> Tensor:
        """Step in use, attached to the graph."""
        return learned_step(self.scale, self.floor, self._gradient_scale(x))

    def _gradient_scale(self, x: Tensor) -> float:
        return (x.numel() * self.copies / self.scale.numel() * self.qmax) ** -0.5
