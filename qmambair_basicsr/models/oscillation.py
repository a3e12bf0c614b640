"""``quant_train: oscillation``: weights that jump to and fro between two levels are held back.

Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022:

===============  ==============================================================================  ======================
paper            meaning                                                                         here
===============  ==============================================================================  ======================
L_dampen         lambda sum (w^ - clip(w, lowest, highest level))^2, no gradient through w^      ``Oscillation.damping``
lambda           rises as a cosine                                                               ``damping:``
o^t              the code changes in the direction opposite to its last change                   in ``_follow``
f^t              m o^t + (1 - m) f^(t-1)                                                         ``frequency``
f_th             falls as a cosine; a weight with f > f_th is frozen                             ``freeze:``
x_int            the same average of the code; a frozen weight takes it, rounded                 ``average``
===============  ==============================================================================  ======================

A frozen weight is held in units of its grid, ``(code - zero) * scale``: where the step goes on being trained the weight
moves with it and keeps its code. The norm and the sums are over all weights of all chosen quantizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..checkpoints import CheckpointError
from ..layers.sites import PlacedSite, parameter_sites, transform_of
from ..quantizers.encoded import AffineCodes
from .quant_options import OscillationOptions

STATE = ("code", "direction", "frequency", "average", "frozen")


class Oscillation(nn.Module):
    """Damps and freezes the weights of a network.

    Args:
        net: bare network, calibrated.
        options: see :class:`OscillationOptions`.
        total: iterations of the training.

    Raises:
        ValueError: no weight fits ``sites``; a weight whose codes are no multiples of a step, or that goes through a
            transform first, is to be frozen.
    """

    def __init__(self, net: nn.Module, options: OscillationOptions, total: int) -> None:
        super().__init__()
        self._options, self._total = options, total
        self._sites = [
            placed
            for placed in parameter_sites(net)
            if placed.site.role == "weight" and any(fnmatchcase(placed.site.name, p) for p in options.sites)
        ]
        if not self._sites:
            raise ValueError(f"quant_train: oscillation: sites: no quantized weight fits {list(options.sites)}")
        device = next(net.parameters()).device
        self.register_buffer("weight", torch.zeros((), device=device), persistent=False)  # lambda
        self.active, self._memory = False, None  # whether damping counts now; see ``_follow``
        if options.freeze is not None:
            for placed in self._sites:
                _require_codes(placed)

    def begin(self, iteration: int, at_rest: bool = False) -> None:
        """Take lambda of an iteration; the codes in front of the first one are remembered.

        Args:
            iteration: from 1 on.
            at_rest: weights are not trained in it: they have nothing to be damped.
        """
        damping = None if at_rest else self._options.damping
        value = 0.0 if damping is None else damping.at(iteration, self._total)
        self.weight.fill_(value)
        self.active = value != 0
        if self._options.freeze is not None and self._memory is None:
            self._memory = [_unmoved(_codes(placed).codes) for placed in self._sites]

    def damping(self) -> Tensor:
        """L_dampen, (), with gradients for the weights."""
        total = torch.zeros_like(self.weight)
        for placed in self._sites:
            value = placed.value()
            with torch.no_grad():
                encoded = placed.quantizer.encode(value)
                low, high = encoded.limits(placed.quantizer.qmin, placed.quantizer.qmax)
                target = encoded.values()
            total = total + (target - torch.minimum(torch.maximum(value, low), high)).square().sum()
        return self.weight * total

    @torch.no_grad()
    def end(self, iteration: int) -> None:
        """Follow the codes that an update has led to; freeze what oscillates, put back what is frozen."""
        freeze = self._options.freeze
        if freeze is None:
            return
        threshold = freeze.at(iteration, self._total) if iteration > freeze.start else float("inf")
        for placed, memory in zip(self._sites, self._memory, strict=True):
            self._follow(placed, memory, threshold)

    def _follow(self, placed: PlacedSite, memory: dict[str, Tensor], threshold: float) -> None:
        share, encoded = self._options.momentum, _codes(placed)
        codes = encoded.codes
        change = torch.sign(codes - memory["code"]).to(torch.int8)
        back = change * memory["direction"] < 0
        memory["frequency"].lerp_(back.to(torch.float32), share)
        memory["average"].lerp_(codes.to(torch.float32), share)
        memory["direction"] = torch.where(change != 0, change, memory["direction"])
        frozen = memory["frozen"]
        newly = (memory["frequency"] > threshold) & ~frozen
        kept = torch.where(newly, memory["average"].round().to(codes.dtype), memory["code"].to(codes.dtype))
        frozen |= newly
        memory["code"] = torch.where(frozen, kept, codes).to(torch.int16)
        held = dataclasses.replace(encoded, codes=memory["code"].to(codes.dtype)).values()
        value = placed.tensor()
        placed.set_tensor(torch.where(frozen, held.to(value.dtype), value))

    def frozen_share(self) -> float:
        """Share of the weights that are frozen."""
        memory = self._memory or []
        count = sum(site["frozen"].numel() for site in memory)
        return sum(int(site["frozen"].sum()) for site in memory) / max(count, 1)

    # -- resuming -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a resumed run goes on from: name of a weight -> tensors; empty where nothing is frozen."""
        if self._memory is None:
            return {}
        return {
            placed.site.label: {name: memory[name].cpu().clone() for name in STATE}
            for placed, memory in zip(self._sites, self._memory, strict=True)
        }

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from :meth:`state`.

        Raises:
            CheckpointError: it is of other weights.
        """
        if self._options.freeze is None or not state:
            return
        device = self.weight.device
        self._memory = []
        for placed in self._sites:
            saved = state.get(placed.site.label)
            if saved is None or saved["code"].shape != placed.tensor().shape:
                raise CheckpointError(
                    f"the training state remembers no oscillations of {placed.site.label}; resume with the option file it "
                    "was written by (quant_train: oscillation)"
                )
            self._memory.append({name: saved[name].to(device).clone() for name in STATE})


def _codes(placed: PlacedSite) -> AffineCodes:
    return placed.quantizer.encode(placed.tensor())


def _require_codes(placed: PlacedSite) -> None:
    where = f"quant_train: oscillation: freeze: {placed.site.label}"
    if not issubclass(placed.quantizer.kind, AffineCodes):
        raise ValueError(f"{where}: codes of {type(placed.quantizer).__name__} are no multiples of a step")
    if transform_of(placed.owner, placed.site.part) is not None:
        raise ValueError(f"{where}: its weight goes through a transform first; leave it out of `sites`")


def _unmoved(codes: Tensor) -> dict[str, Tensor]:
    """Memory of weights that have not moved yet."""
    return {
        "code": codes.to(torch.int16),
        "direction": torch.zeros_like(codes, dtype=torch.int8),
        "frequency": torch.zeros_like(codes, dtype=torch.float32),
        "average": codes.to(torch.float32),
        "frozen": torch.zeros_like(codes, dtype=torch.bool),
    }
