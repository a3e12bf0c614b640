"""Taking transforms out of a network again: what is left are parameters of their own, under their own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..strict import unknown
from .convert import FrozenCodes
from .info import blocks_of, network_info
from .sites import SiteModule
from .transforms import Chain, Place, Transform, TransformError, places


@dataclass(frozen=True)
class Source:
    """The module that computes the input of a product.

    Attributes:
        name: of a LayerNorm, linear, convolution, or part of a module with raw weights.
        rows: its output channels that are the input; None for all.
    """

    name: str
    rows: slice | None = None


@torch.no_grad()
def merge(net: nn.Module, into: Mapping[str, str | Source] | None = None) -> list[str]:
    """Fold transforms into parameters, in place. Outputs stay, up to rounding, before quantization.

    The weight's side is folded into the weight. The input's side is folded into what computes the input, where the caller
    names it, and stays as an online transform elsewhere: only the caller knows that nothing else reads that output.
    Quantizers of the weights that change (the sources', too) must be calibrated again, those of the inputs keep theirs.

    Args:
        net: network with transforms attached.
        into: name of a place -> what computes its input. Sources of inputs inside one module are known
            (:func:`inner_sources`).

    Returns:
        Names of the places whose input is still transformed.

    Raises:
        TransformError: no transform at a place that ``into`` names, frozen weights, or an input's side that its source
            cannot take; the network is left as it was.
    """
    known = places(net)
    found = {name: place for name, place in known.items() if place.transform is not None}
    plans = [_plan(net, known, found, name, source) for name, source in (into or {}).items()]
    for name, place in found.items():
        if not place.transform.folded:
            _require_parameter(name, place)
    for place in found.values():
        transform = place.transform
        if not transform.folded:
            place.weight.copy_(transform.on_weight(place.weight))
            transform.fold_weight()
        place.set_transform(_online(transform))
    for plan in plans:
        plan.run()
    return [name for name, place in found.items() if place.transform is not None]


def inner_sources(net: nn.Module) -> dict[str, Source]:
    """Name of a place whose input one part of the same module computes, for it alone -> that part, for :func:`merge`."""
    found = {}
    for name, module in net.named_modules():
        if isinstance(module, SiteModule):
            for part, (source, rows) in module.inner_sources().items():
                prefix = f"{name}." if name else ""
                found[f"{prefix}{part}"] = Source(f"{prefix}{source}", rows)
    return found


def input_sources(net: nn.Module) -> dict[str, Source]:
    """Name of a place whose input one module computes for it alone, up to factors -> that module, for :func:`merge`.

    :func:`inner_sources`, and what the network's :class:`NetworkInfo` says. Between module and place there may be
    products with other tensors (a gate, attention), which a factor for each channel passes and a rotation does not.
    """
    known, modules = places(net), dict(net.named_modules())
    found = inner_sources(net)
    for block in blocks_of(net):
        for place, source, *part in network_info(net).sources:
            place, source = f"{block}.{place}", f"{block}.{source}"
            if place not in known or source not in modules:
                continue
            rows = None
            if part:
                size = len(modules[source].weight) // part[1]
                rows = slice(part[0] * size, (part[0] + 1) * size)
            found[place] = Source(source, rows)
    return found


@dataclass(frozen=True)
class _Plan:
    """The input's side of one transform, and the tensors that take it."""

    place: Place
    weight: Tensor  # the source's rows
    dim: int
    bias: Tensor | None

    def run(self) -> None:
        transform = self.place.transform
        total = None
        for part in _parts(transform):
            self.weight.copy_(part.rows(self.weight, self.dim))
            constant = part.constant()
            if self.bias is not None:
                self.bias.copy_(part.rows(self.bias, 0))
                if constant is not None:
                    self.bias.add_(constant)
            if constant is not None:
                total = constant if total is None else total + constant
        self.place.set_transform(None)
        if total is not None:  # W (x - o) = W x - W o
            owner = self.place.owner
            used = owner.quantized_weight()
            summed = used if used.ndim == 2 else used.sum((2, 3))  # (O, C / groups)
            groups = self.place.layout.groups
            shift = torch.einsum("goc,gc->go", summed.unflatten(0, (groups, -1)), total.view(groups, -1))
            owner.bias.sub_(shift.flatten())


def _online(transform: Transform) -> Transform | None:
    """What is left of a folded transform: its parts that change the input."""
    if not transform.changes_input:
        return None
    left = [part for part in _parts(transform) if part.changes_input]
    if not isinstance(transform, Chain) or len(left) == len(transform.parts):
        return transform
    if len(left) == 1:
        return left[0]
    kept = Chain(*left)
    kept.bind(transform.layout)
    kept.fold_weight()
    return kept.train(transform.training)


def _parts(transform: Transform) -> list[Transform]:
    return [leaf for part in transform.parts for leaf in _parts(part)] if isinstance(transform, Chain) else [transform]


def _plan(
    net: nn.Module, known: Mapping[str, Place], found: Mapping[str, Place], name: str, source: str | Source
) -> _Plan:
    if name not in found:
        raise TransformError(unknown("merge", "place with a transform", name, found))
    source = Source(source) if isinstance(source, str) else source
    place, transform = found[name], found[name].transform
    weight, dim, bias, groups = _source(net, known, source)
    where = f"merge: {name} into {source.name}"
    if source.rows is not None:
        weight = weight.movedim(dim, 0)[source.rows].movedim(0, dim)
        bias = None if bias is None else bias[source.rows]
    if weight.shape[dim] != place.layout.channels:
        raise TransformError(f"{where}: it has {weight.shape[dim]} output channels, not {place.layout.channels}")
    if not transform.diagonal and (weight.ndim == 1 or groups > 1):
        raise TransformError(
            f"{where}: a LayerNorm and groups of a convolution keep channels apart, {transform} mixes them"
        )
    if transform.leaves:
        owner = place.owner
        if bias is None or getattr(owner, "bias", None) is None:
            raise TransformError(f"{where}: an offset needs a bias in both")
        if any(getattr(owner, "padding", ())):
            raise TransformError(
                f"{where}: padding surrounds the map with zeros behind the offset; it cannot be folded"
            )
    return _Plan(place, weight, dim, bias)


def _source(net: nn.Module, known: Mapping[str, Place], source: Source) -> tuple[Tensor, int, Tensor | None, int]:
    """Weight, dimension of its output channels, bias and groups of what computes an input.

    Raises:
        TransformError: no such module, or one that cannot take a transform.
    """
    if source.name in known and known[source.name].part:  # a part of a module with raw weights, (K, rows, columns)
        _require_parameter(source.name, known[source.name])
        return known[source.name].weight, -2, None, 1
    modules = dict(net.named_modules())
    if source.name not in modules:
        raise TransformError(unknown("merge", "module", source.name, modules))
    module = modules[source.name]
    if not isinstance(module, (nn.LayerNorm, nn.Linear, nn.Conv2d)) or module.weight is None:
        kind = type(module).__name__
        raise TransformError(
            f"merge: {source.name} is a {kind}; LayerNorm (with weights), Linear and Conv2d take a transform"
        )
    if source.name in known:
        _require_parameter(source.name, known[source.name])
    return module.weight, 0, module.bias, getattr(module, "groups", 1)


def _require_parameter(name: str, place: Place) -> None:
    if isinstance(place.owner.get_submodule(place.weight_slot), FrozenCodes):
        raise TransformError(f"{name}: its weight is frozen to codes; merge transforms before")
