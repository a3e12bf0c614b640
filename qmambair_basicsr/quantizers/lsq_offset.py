"""LSQOffset: LSQ with a learned offset, the activation quantizer of the Q-MambaIR release (its ``Act_Quant``).

Not described in the Q-MambaIR paper, which claims DLS for all activations; the release uses this one for
the inputs of convolutions, linears and raw projections, except ``out_proj``. Code semantics are followed.

==============  ==============================================  =============
release         meaning                                         here
==============  ==============================================  =============
scale           step size, learned                              ``scale``
offset          b, added before and subtracted after, learned   ``offset``
signed          false when the data is never negative           ``signed``
==============  ==============================================  =============

Forward ``(round(clamp((x + b) / s, Q_N, Q_P))) * s - b``. Gradients: as LSQ with x + b in place of x; to b,
0 inside the range and -1 outside; only s has the gradient scale 1 / sqrt(numel * Q_P). b starts at 0.

``mode: official`` is that, with s used as it is (it may become zero or negative), initialised from the first
batch shown. ``mode: stable`` (default) differs in two points: the step in use is max(|s|, 1e-8), and the start
comes from all calibration batches (mean; signed if any batch is): with ``search: mse`` (default) step and offset of
the interval with the least squared error, as LSQ+ does, with ``search: none`` the release's 2 mean|x| / sqrt(Q_P)
and b = 0.
``offsets: channel`` (not of the release) learns an offset for each channel beside the one step of the tensor: integer
products keep one factor, and what the offsets add to a product is a constant for each output channel. With
``granularity: group16`` there is a step for each group of channels beside them.
In both the output is ``(codes - zero) * scale`` exactly, where the release adds round-off by its detach trick.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .lsq import INITIAL_FLOOR, LSQ, NEGATIVE
from .registry import register_quantizer
from .search import best_common_step, best_interval
from .site import ACTIVATION, Site
from .spec import Option

MODE = Option("stable", "the mended quantizer, or the release's arithmetic", choices=("stable", "official"))
OFFSETS = Option("shared", "one offset for each step, or one for each channel", choices=("shared", "channel"))
SEARCH = Option("mse", "fit the start to the calibration data (stable)", choices=("mse", "none"))


@register_quantizer
class LSQOffset(LSQ):
    """LSQ with a learned offset; see the module docstring.

    Args:
        mode: ``stable`` or ``official``.
        search: ``mse`` or ``none``, how a stable quantizer starts.
        granularity: ``tensor`` (release), ``channel`` or a group of channels.
        offsets: ``shared`` (release), as many as steps, or ``channel`` (beside steps for the tensor or for groups).

    Raises:
        SpecError: offsets per channel where the site has no channels.
    """

    options: ClassVar = {"mode": MODE, "search": SEARCH, **LSQ.options, "offsets": OFFSETS}

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        granularity: str = "tensor",
        mode: str = "stable",
        search: str = "mse",
        offsets: str = "shared",
    ) -> None:
        super().__init__(bits, site, granularity=granularity)
        whole = granularity == "tensor" or (self.cut is not None and not self.cut.rows)
        self.own_offsets = offsets == "channel" and whole
        if self.own_offsets and self.cut is None:
            self.dim = self.channel_dim("offsets")
        self.mode = mode
        self.search = search if mode == "stable" else "none"
        self.first_batch_only = mode == "official"
        if mode == "official":
            self.floor = None
        self.offset = nn.Parameter(torch.zeros(site.channels if self.own_offsets else self.groups))

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        values = super().estimate(x)
        if self.search == "none":
            return values | {"offset": torch.zeros_like(self.offset)}
        if self.own_offsets:
            rows = self._full(x).movedim(self.channel_dim("offsets"), 0).flatten(1)  # (C, values)
            found = [best_common_step(part, self.qmax - self.qmin) for part in rows.chunk(self.groups)]
            scale = torch.cat([step for step, _ in found]).clamp_min(INITIAL_FLOOR)
            low = torch.cat([start for _, start in found])
            first = torch.where(values["signed"], float(self.qmin), 0.0) * scale
            return values | {
                "scale": scale,
                "offset": (first if self.cut is None else self.cut.spread_over(first)) - low,
            }
        low, high = best_interval(self._full(self._rows(x)), self.qmax - self.qmin)
        scale = ((high - low) / (self.qmax - self.qmin)).clamp_min(INITIAL_FLOOR)
        start = torch.where(values["signed"], float(self.qmin), 0.0)
        return values | {"scale": scale, "offset": start * scale - low}

    def parameter_health(self) -> dict[str, float]:
        return super().parameter_health() | {"offset": self.offset.detach().mean().item()}

    def _is_signed(self, x: Tensor) -> Tensor:
        return x.amin() < NEGATIVE
