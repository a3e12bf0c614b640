"""PTQ4VM: smoothing, ranges and weights' steps learned together, block by block.

Cho et al., "PTQ4VM: Post-Training Quantization for Visual Mamba", WACV 2025; checked against YoungHyun197/ptq4vm.

===========  ==================================================================  ================================
paper        meaning                                                             here
===========  ==================================================================  ================================
PTS          static step and zero of activations                                 :class:`FixedZero`
s            max|x|^.5 / max|w|^.5, learned                                      ``Smoothing(learned=True)``
JLSS         training of all steps and s, loss 1 - cos of each token             :meth:`PTQ4VM.losses`
===========  ==================================================================  ================================

Searches of both steps are the release's (``search.clip_search``, ``step_search``); zero points stay where they are in JLSS, as
released. Weights: symmetric, per channel in their code (``quant: weight: {type: MinMax, symmetric: true, granularity:
channel}``); asymmetric quantizers of weights get the search of activations. Parameters of the scan, which the release leaves in
full precision, start from their smallest to their largest value: the search of activations extends a range to contain 0, which
states of A, all of them negative, cannot spare levels for.

A network of images has no fixed number of tokens, so steps for each token index (PTS) do not exist in an ordinary network:
one step serves all tokens here (their per-tensor mode). s is learned where a LayerNorm computes the input, which takes it
exactly; where a quantized layer does, it is folded once, before ranges are searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.merging import Source, input_sources, merge
from ..layers.sites import network_sites
from ..layers.transforms import Smoothing, attach, places, transforms_of
from ..quantizers.base import Quantizer
from ..quantizers.minmax import MinMax
from ..quantizers.spec import Option
from ..quantizers.ste import snap
from .blockwise import BlockReconstruction
from .method import register_method, require_no_transforms
from .ranges import SAMPLES, quantized_sites, samples_of
from .search import clip_search, step_search
from .smoothing import scales_of
from .training import SEED


def stepped(x: Tensor, step: Tensor, zero: Tensor, lowest: float, highest: float, weight: bool = False) -> Tensor:
    """``(clip(round(x / s) + z, lowest, highest) - z) s``, rounding straight through; z is a whole number in the release.

    Of any other z, ``round(x / s + z)`` is taken: codes are whole numbers, and 0 need not be a value of the grid. As released, a weight exactly on the lowest or highest code counts as clipped, an activation there does not.
    """
    position = x / step + zero
    clipped = position.clamp(lowest, highest)
    if weight:
        clipped = torch.where((position > lowest) & (position < highest), position, clipped.detach())
    return (snap(clipped, torch.round(clipped)) - zero) * step


class FixedZero(Quantizer):
    """Stands in for a MinMax quantizer while its step is trained and its zero stays.

    Args:
        base: what it stands in for.
    """

    bit_widths = tuple(range(1, 9))

    def __init__(self, base: MinMax) -> None:
        super().__init__(base.bits, base.site)
        self.base, self.dim = base, base.dim
        self.codes = (base.qmin, base.qmax) if base.symmetric else (0, 2**base.bits - 1)
        self.step = nn.Parameter(torch.ones(base.groups))
        self.register_buffer("zero", torch.zeros(base.groups))

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Search step and zero for values (groups, M).

        The grid of a scan's parameter reaches from the smallest to the largest value; zero need not be on it.
        """
        if self.base.symmetric:
            step, zero = step_search(rows, self.bits), self.zero
        elif self.site.parameter is not None and self.site.operand != "weight":
            low, high = rows.aminmax(dim=1)
            lowest, highest = self.codes
            step = (high - low).clamp_min(torch.finfo(low.dtype).eps) / (highest - lowest)
            zero = lowest - low / step
        else:
            step, zero = clip_search(rows, self.bits)
        self.step.copy_(step)
        self.zero.copy_(zero)
        self.initialized.fill_(True)
        self._ready = True

    def quantize(self, x: Tensor) -> Tensor:
        step, zero = (self.base._spread(p, x) for p in (self.step.clamp_min(1e-12), self.zero))
        return stepped(x, step, zero, *self.codes, self.role == "weight")

    def ordinary(self) -> MinMax:
        """The MinMax quantizer with this grid."""
        step = self.step.detach().clamp_min(1e-12)
        self.base.set_bounds(*((code - self.zero) * step for code in self.codes))
        return self.base


def cosine_loss(result: Tensor, target: Tensor, dim: int = -1) -> Tensor:
    """1 - cosine of the angle between two outputs, averaged over tokens."""
    return (1 - F.cosine_similarity(result, target, dim=dim)).mean()


@register_method
class PTQ4VM(BlockReconstruction):
    """JLSS; see the module docstring."""

    options: ClassVar = {
        "alpha": Option(0.5, "share of the activation in s", low=0, high=1),
        "lr": Option(5e-4, "learning rate of steps", low=0, high=1),
        "smooth_lr": Option(1e-2, "learning rate of s", low=0, high=1),
        "weight_decay": Option(1e-5, "of AdamW", low=0, high=1),
        "clip": Option(2.0, "largest gradient norm", low=0, high=1e9),
        "batch": Option(4, "images of an iteration", low=1, high=4096),
        "samples": Option(SAMPLES, "values of a tensor that the searches look at; 0: all", low=0, high=1e9),
        "seed": SEED,
    }
    default_iterations = 4000

    def open(self, net: nn.Module) -> None:
        self.batch = int(self.settings["batch"])
        super().open(net)

    def attach(self) -> None:
        require_no_transforms(self.net, self)
        sites = quantized_sites(self.net, type(self).__name__)
        known = places(self.net)
        attach(
            self.net, {name: Smoothing(torch.ones(known[name].layout.channels), True) for name in self.norms(self.net)}
        )
        for placed in sites:
            like = placed.quantizer.lower
            placed.replace(FixedZero(placed.quantizer).to(like.device, like.dtype))

    def sources(self, net: nn.Module) -> dict[str, Source]:
        """Places whose input can take factors, and what computes it."""
        return {name: source for name, source in input_sources(net).items() if self.reaches(name)}

    def norms(self, net: nn.Module) -> dict[str, Source]:
        """Places whose input a LayerNorm computes for them alone."""
        modules = dict(net.named_modules())
        return {name: s for name, s in self.sources(net).items() if isinstance(modules.get(s.name), nn.LayerNorm)}

    def start(self, batches: Sequence[Tensor]) -> None:
        known, norms = places(self.net), self.norms(self.net)
        sources = self.sources(self.net)
        scales = scales_of(self.net, batches, sources, self.settings["alpha"], 1e-3)
        with torch.no_grad():
            for name in norms:
                known[name].transform.scale.copy_(scales[name])
        others = {name: source for name, source in sources.items() if name not in norms}
        self._fold({name: scales[name] for name in others}, others)
        sites = [p for p in network_sites(self.net) if isinstance(p.quantizer, FixedZero)]
        computed = [placed for placed in sites if placed.site.parameter is None]
        seen = samples_of(self.net, batches, computed, int(self.settings["samples"]))
        for placed in sites:
            sample = seen.get(placed.site.label)
            rows = placed.quantizer.base._rows(placed.tensor()) if sample is None else sample.with_ends()
            placed.quantizer.start(rows)

    def _fold(self, scales: dict[str, Tensor], sources: dict[str, Source]) -> None:
        """Fold factors for good, around the transforms that are learned."""
        kept = {name: place for name, place in places(self.net).items() if place.transform is not None}
        transforms = {name: place.transform for name, place in kept.items()}
        for place in kept.values():
            place.set_transform(None)
        attach(self.net, {name: Smoothing(scale) for name, scale in scales.items()})
        merge(self.net, sources)
        for name, place in kept.items():
            place.set_transform(transforms[name])

    def prepare_unit(self, name: str, module: nn.Module, length: int) -> list[torch.optim.Optimizer]:
        factors = [t.scale for t in transforms_of(module).values()]
        steps = [p.quantizer.step for p in network_sites(module) if isinstance(p.quantizer, FixedZero)]
        for parameter in (*steps, *factors):
            parameter.requires_grad_(True)
        self._factors, self._trained = factors, [*steps, *factors]
        groups = [{"params": steps, "lr": self.settings["lr"]}]
        groups += [{"params": factors, "lr": self.settings["smooth_lr"]}] if factors else []
        pixels = not any(isinstance(part, nn.Linear) for part in module.modules())
        self._channels = 1 if pixels else -1  # convolutions alone: (N, C, H, W)
        return [torch.optim.AdamW(groups, weight_decay=self.settings["weight_decay"])]

    def losses(
        self, iteration: int, length: int, result: Tensor, target: Tensor, chosen: list[int]
    ) -> dict[str, Tensor]:
        return {"l_cos": cosine_loss(result, target, self._channels)}

    def before_update(self) -> None:
        nn.utils.clip_grad_norm_(self._trained, self.settings["clip"])

    @torch.no_grad()
    def after_update(self) -> None:
        for factor in self._factors:
            factor.clamp_(min=1e-3)

    def finish(self, net: nn.Module) -> None:
        merge(net, self.norms(net))
        for placed in network_sites(net):
            if isinstance(placed.quantizer, FixedZero):
                placed.replace(placed.quantizer.ordinary())
