"""AdaRound: learning for each weight whether it is rounded down or up.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020; as FIMA-Q's and APHQ-ViT's
releases have it (their files are identical).

=============  =============================================================  =======================
paper          meaning                                                        here
=============  =============================================================  =======================
V              what is learned; starts so that h(V) is the fraction           ``AdaRound.V``
h(V)           clip(1.2 sigmoid(V) - 0.1, 0, 1)                               :func:`rectified`
W~             s (clip(floor(W / s) + h(V), n, p))                            ``AdaRound.forward``
f_reg          sum 1 - |2 h(V) - 1|^beta                                      :func:`regulariser`
beta           20, falling linearly to 2 after a warm-up of 20 %              :func:`beta`
=============  =============================================================  =======================

With gradients a weight is rounded softly, without them by the sign of V. :func:`harden` takes AdaRound out of a network:
weights become grid values, so that their ordinary quantizer keeps the decision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.sites import PlacedSite, parameter_sites
from ..quantizers.affine import AffineQuantizer
from ..quantizers.base import Quantizer

GAMMA, ZETA = -0.1, 1.1


def rectified(v: Tensor) -> Tensor:
    """h(V): the share of the way up, within [0, 1]."""
    return ((ZETA - GAMMA) * torch.sigmoid(v) + GAMMA).clamp(0, 1)


def inverse(fraction: Tensor) -> Tensor:
    """The V with h(V) = fraction, for fractions in [0, 1)."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def rounded(weight: Tensor, step: Tensor, offset: Tensor, bounds: tuple[float, float], up: Tensor) -> Tensor:
    """The value of codes ``clip(floor((w + o) / s) + up)``.

    Args:
        weight: W.
        step, offset: s and o, broadcast to it.
        bounds: lowest and highest code.
        up: h(V), or 0 and 1.
    """
    codes = torch.floor((weight + offset) / step).detach() + up
    return codes.clamp(*bounds) * step - offset


def regulariser(v: Tensor, exponent: float) -> Tensor:
    """``sum(1 - |2 h(V) - 1|^beta)``: 0 where every decision is made."""
    return (1 - (2 * rectified(v) - 1).abs().pow(exponent)).sum()


def beta(iteration: int, total: int, warmup: float = 0.2, start: float = 20.0, end: float = 2.0) -> float:
    """Exponent of the regulariser; ``start`` during the warm-up, when the regulariser is left out."""
    first = warmup * total
    if iteration < first:
        return start
    share = (iteration - first) / (total - first)
    return end + (start - end) * max(0.0, 1 - share)


class AdaRound(Quantizer):
    """Stands in for the quantizer of a weight while its rounding is learned.

    Args:
        base: what it stands in for, an :class:`AffineQuantizer`; its grid is used.
        weight: the tensor that it will quantize; only its shape counts until :meth:`start`.
    """

    bit_widths = tuple(range(1, 9))
    roles = ("weight", "param")

    def __init__(self, base: AffineQuantizer, weight: Tensor) -> None:
        super().__init__(base.bits, base.site)
        self.base = base
        self.V = nn.Parameter(torch.zeros_like(weight))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Set V so that a soft-rounded weight is the weight itself, within the grid's range."""
        step, offset = self._grid(weight)
        position = (weight + offset) / step
        self.V.copy_(inverse(position - torch.floor(position)))
        self.initialized.fill_(True)
        self._ready = True

    def quantize(self, x: Tensor) -> Tensor:
        step, offset = self._grid(x)
        soft = torch.is_grad_enabled() and self.V.requires_grad
        up = rectified(self.V) if soft else (self.V >= 0).to(x.dtype)
        return rounded(x, step, offset, (self.base.qmin, self.base.qmax), up)

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step, offset = self.base.step_and_offset(x)
        step = self.base._spread(step.detach(), x)
        return step, torch.zeros_like(step) if offset is None else self.base._spread(offset.detach(), x)


def learned(net: nn.Module) -> list[PlacedSite]:
    """Sites whose rounding is being learned, in module order."""
    return [placed for placed in parameter_sites(net) if isinstance(placed.quantizer, AdaRound)]


def soften(placed: PlacedSite) -> AdaRound:
    """Put AdaRound in place of a weight's quantizer."""
    quantizer = AdaRound(placed.quantizer, placed.tensor())
    placed.replace(quantizer)
    return quantizer


@torch.no_grad()
def harden(net: nn.Module) -> None:
    """Turn decisions into weights, and put the ordinary quantizers back, in place."""
    for placed in learned(net):
        placed.set_tensor(placed.quantizer.quantize(placed.tensor()))
        placed.replace(placed.quantizer.base)
