"""Every quantized parameter of a network, quantized at the start of a training step in one call per kind of operator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..quantizers.base import Quantizer
from ..quantizers.site import Derived
from ..quantizers.together import item_of, run_items
from .sites import PlacedSite, network_sites
from .weight_cache import Loan, WeightCache


class _Place(NamedTuple):
    """A quantized parameter, and what has to stay as it is for the list of them to be true."""

    holder: dict[str, nn.Module | None]
    leaf: str
    quantizer: Quantizer
    owner: nn.Module
    part: str
    parameter: str
    derived: Derived | None
    cache: WeightCache

    def holds(self) -> bool:
        """Whether the quantizer and its parameter are still where they were found."""
        return self.holder.get(self.leaf) is self.quantizer and self.owner._parameters.get(self.parameter) is not None


class ParameterBatch:
    """A hook in front of a prepared network's forward: quantizes all parameters together and lends each layer its value.

    Only in training with gradients: evaluation keeps its values (:class:`WeightCache`). A parameter with a transform in
    front of its quantizer, one whose quantizer calibrates, is not initialised or is watched by a hook, and one that was
    added later are left to their layers, which quantize what they were not lent. What the values depend on is read anew
    in every step (bits, parameters, quantizers put in place of others).
    """

    def __init__(self) -> None:
        self._places: list[_Place] | None = None
        self._net: nn.Module | None = None
        self._loans: list[tuple[WeightCache, Loan]] = []

    def __deepcopy__(self, memo: dict) -> ParameterBatch:
        return ParameterBatch()

    def __reduce__(self):
        return ParameterBatch, ()

    def attach(self, net: nn.Module) -> None:
        """Put the hooks in place."""
        net.register_forward_pre_hook(self)
        net.register_forward_hook(_close, always_call=True)

    def __call__(self, net: nn.Module, inputs: tuple) -> None:
        """Quantize what can be; the hook in front of ``net.forward``."""
        self.clear()
        if not net.training or not torch.is_grad_enabled() or "_is_replica" in vars(net):
            return
        if self._places is None or self._net is not net or not all(place.holds() for place in self._places):
            self._places, self._net = _places_of(net), net
        items, caches = [], []
        for place in self._places:
            parameter = place.owner._parameters[place.parameter]
            item = item_of(place.quantizer, parameter) if _untransformed(place) else None
            if item is None:
                continue
            if place.derived is not None:
                item = place.quantizer.item(place.derived.value(parameter))
            items.append(item)
            caches.append(place.cache)
        for cache, value in zip(caches, run_items(items), strict=True):
            loan = Loan(value)
            cache.lend(loan)
            self._loans.append((cache, loan))

    def clear(self) -> None:
        """Forget the values."""
        for cache, _ in self._loans:
            cache.lend(None)
        self._loans = []

    def close(self) -> None:
        """The forward pass is over."""
        for _, loan in self._loans:
            loan.open = False


def _close(net: nn.Module, inputs: tuple, output: object) -> None:
    batch = batch_of(net)
    if batch is not None:
        batch.close()


def batch_of(net: nn.Module) -> ParameterBatch | None:
    """The hook of a prepared network; None for others."""
    return next((hook for hook in net._forward_pre_hooks.values() if isinstance(hook, ParameterBatch)), None)


def _places_of(net: nn.Module) -> list[_Place]:
    return [_place(placed) for placed in network_sites(net) if _cache(placed) is not None]


def _place(placed: PlacedSite) -> _Place:
    site, owner = placed.site, placed.owner
    path, _, leaf = site.slot.rpartition(".")
    holder = owner.get_submodule(path)._modules
    return _Place(holder, leaf, placed.quantizer, owner, site.part, site.parameter, site.derived, _cache(placed))


def _cache(placed: PlacedSite) -> WeightCache | None:
    """Where the layer of a quantized parameter looks for its value."""
    if placed.site.parameter is None:
        return None
    quantizers = placed.owner._modules.get("quantizers")
    if quantizers is None:
        return getattr(placed.owner, "weight_cache", None)
    return quantizers.weight_caches.get(placed.site.slot.rpartition(".")[2])


def _untransformed(place: _Place) -> bool:
    transforms = place.owner._modules.get("transforms")
    return place.owner._modules.get("transform") is None and (transforms is None or place.part not in transforms)
