"""Every quantization site of a network, and modules whose own tensors pass through sites.

A module with sites has two methods: ``quantization_sites()`` lists them (:class:`Site`, names relative to itself),
whether it is quantized yet or not; ``attach_quantizers()`` takes a quantizer for each and returns the module that
is to be in its place. :func:`network_sites` walks a network; nothing else needs to know which modules have sites.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.backend import export_target
from ..ops.rounding import Rounding
from ..quantizers.base import Quantizer
from ..quantizers.site import Derived, Site
from ..quantizers.together import quantize_together, rounding_of
from .weight_cache import WeightCache


class PlacedSite(NamedTuple):
    """A site of a network with a quantizer in it.

    Attributes:
        owner: module that has the site.
        site: the site, with dotted names in the network.
        quantizer: what sits there.
    """

    owner: nn.Module
    site: Site
    quantizer: Quantizer

    @property
    def name(self) -> str:
        """Dotted name of the quantizer."""
        return self.site.quantizer_path

    @property
    def parameter(self) -> str | None:
        """Dotted name of the quantized parameter; None for tensors computed from the input."""
        return self.site.parameter_path

    def value(self) -> Tensor:
        """Input of a parameter's quantizer: the parameter, transformed, or the tensor that the site derives from it."""
        parameter, transform = getattr(self.owner, self.site.parameter), self._transform()
        return self.site.value_of(parameter if transform is None else transform.on_weight(parameter))

    @torch.no_grad()
    def tensor(self) -> Tensor:
        """:meth:`value` without gradients."""
        return self.value().detach()

    @torch.no_grad()
    def set_tensor(self, value: Tensor) -> None:
        """Set the parameter so that :meth:`tensor` is ``value``."""
        parameter, transform = getattr(self.owner, self.site.parameter), self._transform()
        value = self.site.parameter_of(value).view(parameter.shape)
        parameter.copy_(value if transform is None else transform.original(value))

    def _transform(self) -> nn.Module | None:
        return transform_of(self.owner, self.site.part) if self.site.operand == "weight" else None

    def replace(self, quantizer: Quantizer) -> None:
        """Put another quantizer in this place, in the training mode of the one that leaves."""
        parent, _, leaf = self.site.slot.rpartition(".")
        holder = self.owner.get_submodule(parent)
        setattr(holder, leaf, quantizer.train(self.quantizer.training))


def sites_of(module: nn.Module) -> tuple[Site, ...]:
    """The sites that a module itself has (none for most), names relative to it."""
    declared: Callable[[], tuple[Site, ...]] | None = getattr(module, "quantization_sites", None)
    return () if declared is None else tuple(declared())


def network_sites(net: nn.Module) -> list[PlacedSite]:
    """Every site of a prepared network, in the order of its modules, those with 32 bits included."""
    found = []
    for name, module in net.named_modules():
        for site in sites_of(module):
            quantizer = _in_slot(module, site.slot)
            if quantizer is not None:
                found.append(PlacedSite(module, site.within(name), quantizer))
    return found


def parameter_sites(net: nn.Module) -> list[PlacedSite]:
    """Every quantized parameter of a network, in module order; those kept in full precision are left out."""
    return [p for p in network_sites(net) if p.site.parameter is not None and p.quantizer.bits != 32]


def activation_sites(net: nn.Module) -> list[PlacedSite]:
    """Every quantized tensor that is computed anew in each forward, in module order; full precision left out.

    Operands of products count, also where they are computed from parameters alone (MambaIRv2's prompt dictionary).
    """
    return [p for p in network_sites(net) if p.site.parameter is None and p.quantizer.bits != 32]


def transform_of(owner: nn.Module, part: str) -> nn.Module | None:
    """The transform (``transforms.py``) of a layer, or of a part of a module with raw weights; None without one."""
    if not part:
        return owner._modules.get("transform")
    transforms = owner._modules.get("transforms")
    return transforms[part] if transforms is not None and part in transforms else None


def quantizers_of(net: nn.Module) -> dict[str, Quantizer]:
    """Name -> quantizer, for all quantizers of a network."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Quantizer)}


def quantizer_keys(net: nn.Module) -> set[str]:
    """Keys of the state_dict that belong to quantizers."""
    prefixes = tuple(f"{name}." for name in quantizers_of(net))
    return {key for key in net.state_dict() if key.startswith(prefixes)}


def for_each_channel(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values in a state that a quantizer of the network has one of for each channel, repeated for all channels."""
    own = net.state_dict()
    return {
        key: state[key].expand_as(own[key]).clone()
        for key in sorted(quantizer_keys(net) & state.keys())
        if state[key].shape == (1,) and own[key].ndim == 1 and own[key].numel() > 1
    }


def other_quantizers(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Quantizers of a network that a state has of another kind, or not at all: name -> the state's keys of them."""
    names = quantizers_of(net).keys()
    kept, given = (_by_owner(names, keys) for keys in (net.state_dict(), state))
    return {name: given[name] for name in names if kept[name] != given[name]}


def _by_owner(names: Collection[str], keys: Iterable[str]) -> dict[str, set[str]]:
    """Of every module the keys that begin with its name."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for key in keys:
        parts = key.split(".")
        for name in (".".join(parts[:n]) for n in range(1, len(parts))):
            if name in found:
                found[name].add(key)
    return found


def uncalibrated(net: nn.Module) -> list[str]:
    """Names of the quantizers whose parameters mean nothing yet."""
    return [name for name, quantizer in quantizers_of(net).items() if not quantizer.is_initialized()]


def _in_slot(module: nn.Module, slot: str) -> Quantizer | None:
    for part in slot.split("."):
        module = module._modules.get(part)
        if module is None:
            return None
    return module


class SiteQuantizers(nn.ModuleDict):
    """Name of a site's slot -> quantizer, of one module whose own tensors are quantized.

    The fake-quantized value of a parameter is kept in evaluation (:class:`WeightCache`).

    Args:
        quantizers (Mapping[str, Quantizer]): One quantizer for each site.
        parameters (Iterable[str]): Names of the sites whose tensor depends on a parameter only.
    """

    def __init__(self, quantizers: Mapping[str, Quantizer], parameters: tuple[str, ...]):
        super().__init__(quantizers)
        self.weight_caches = {name: WeightCache() for name in parameters}

    def forward(
        self, name: str, tensor: Tensor, source: Tensor | None = None, transform: nn.Module | None = None
    ) -> Tensor:
        """Fake-quantize the tensor of a site.

        Args:
            name (str): Site.
            tensor (Tensor): Value at that site.
            source (Tensor | None): Parameter that the value is computed from, if it is not a parameter itself.
            transform (nn.Module | None): What a weight goes through first.
        """
        if name in self.weight_caches:
            return self.weight_caches[name](self[name], tensor, source, transform)
        return self[name](tensor)

    def rounding(self, name: str) -> Rounding | None:
        """What calling a site's quantizer amounts to, where that is rounding and nobody watches; else None."""
        return rounding_of(self[name])

    def train(self, mode: bool = True) -> SiteQuantizers:
        for cache in self.weight_caches.values():
            cache.clear()
        return super().train(mode)


class SiteModule(nn.Module):
    """A module whose own tensors pass through sites: raw parameters and what is computed with them.

    A subclass lists its sites in :meth:`quantization_sites`, each in the slot ``quantizers.NAME``, and passes the tensor
    of each through :meth:`site`, which returns it unchanged in a full-precision network. ``prepare`` attaches the
    quantizers.

    Attributes:
        entry_points: Methods that others call instead of the module itself, for tools that watch what runs.
        stacked_inputs: Parts whose input has a dimension for the K matrices of their weight, (..., K, channels).
        transforms: Part -> what its input and weight go through before their quantizers (``transforms.py``), or None.
    """

    entry_points: ClassVar[tuple[str, ...]] = ()
    stacked_inputs: ClassVar[tuple[str, ...]] = ()
    quantizers: SiteQuantizers | None
    transforms: nn.ModuleDict | None

    def __init__(self) -> None:
        super().__init__()
        self.register_module("quantizers", None)
        self.register_module("transforms", None)
        self._transformed: dict[str, tuple[str, str]] = {}

    def inner_sources(self) -> dict[str, tuple[str, slice]]:
        """Part whose input another part computes, for it alone -> that part, and the rows of its weight that do."""
        return {}

    def set_transform(self, part: str, transform: nn.Module | None) -> None:
        """Put a transform in front of the quantizers of a part's input and weight, or take it away (None)."""
        kept = {} if self.transforms is None else {name: t for name, t in self.transforms.items() if name != part}
        kept |= {} if transform is None else {part: transform}
        self.transforms = nn.ModuleDict(kept) if kept else None
        self._transformed = {
            site.slot.rpartition(".")[2]: (site.part, site.operand)
            for site in self.quantization_sites()
            if site.part in kept and site.operand
        }

    def quantization_sites(self) -> tuple[Site, ...]:
        """The sites of this module, names relative to it, in the order in which their quantizers are kept."""
        raise NotImplementedError

    def attach_quantizers(self, quantizers: Mapping[str, Quantizer]) -> SiteModule:
        """Take over one quantizer for each site.

        Args:
            quantizers (Mapping[str, Quantizer]): By the site's slot.

        Returns:
            SiteModule: What takes the place of this module: itself.
        """
        prefix = "quantizers."
        parameters = [s.slot.removeprefix(prefix) for s in self.quantization_sites() if s.parameter is not None]
        own = {slot.removeprefix(prefix): quantizer for slot, quantizer in quantizers.items()}
        self.quantizers = SiteQuantizers(own, tuple(parameters)).train(self.training)
        return self

    def lower_products(self) -> tuple[str, ...]:
        """Put products of integer codes in place of computations whose operands are all quantized, for ``lowering``.

        Returns:
            The operations (``Site.operation``) that no longer pass through :meth:`site`; none where a subclass does not
            say otherwise: what passes is then on its grid, but computed with in floating point.
        """
        return ()

    def site(self, name: str, tensor: Tensor, source: Tensor | None = None) -> Tensor:
        """The tensor as the network uses it at a site: itself, or fake-quantized after ``prepare``.

        Args:
            name (str): Site, NAME of its slot ``quantizers.NAME``.
            tensor (Tensor): Value at the site.
            source (Tensor | None): Parameter that the value is computed from, if it is not a parameter itself.
        """
        if self.quantizers is None:
            return tensor
        if name not in self._transformed:
            return self.quantizers(name, tensor, source)
        part, operand = self._transformed[name]
        transform = self.transforms[part]
        if operand == "act":
            return transform.leave(self.quantizers(name, transform.enter(tensor), source))
        if transform.folded:
            return self.quantizers(name, tensor, source)
        return self.quantizers(name, tensor, source, transform)

    def derived_site(self, name: str, parameter: Tensor, derived: Derived) -> Tensor:
        """:meth:`site` of a tensor that follows from a parameter, which is worked out only where it is needed."""
        if isinstance(self.quantizers, SiteQuantizers) and name not in self._transformed:
            lent = self.quantizers.weight_caches[name].lent
            if lent is not None:
                return lent
        return self.site(name, derived.value(parameter), source=parameter)

    def site_rounding(self, name: str) -> Rounding | None:
        """The rounding that is all of :meth:`site` of a tensor; None where the site has to see the tensor itself."""
        exported = export_target() is not None
        return None if exported or name in self._transformed else self.quantizers.rounding(name)

    def joint_sites(self, **tensors: Tensor) -> list[Tensor]:
        """:meth:`site` of several tensors that are computed anew in each forward and are ready at the same time."""
        apart = not isinstance(self.quantizers, SiteQuantizers)  # full precision, or lowered
        if apart or not self._transformed.keys().isdisjoint(tensors):
            return [self.site(name, tensor) for name, tensor in tensors.items()]
        return quantize_together([(self.quantizers[name], tensor) for name, tensor in tensors.items()])
