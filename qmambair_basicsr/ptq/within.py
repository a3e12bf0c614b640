"""A method confined to some modules of a network, while everything else stays in full precision.

This is how SPR2Q's tables show Quamba, MambaQuant and PTQ4VM: they quantize the modules around the scans, and the method that
asks for it (``scan:`` of 2DQuant and SPR2Q) the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..layers.sites import network_sites, sites_of
from ..layers.transforms import places
from ..quantizers.spec import Option, SpecError
from .method import PTQMethod, build_method, require_ordinary
from .training import leave_out

OWN = "own"
METHODS = ("MinMax", "Percentile", "Quamba", "Quamba2", "MambaQuant", "PTQ4VM")
ITERATIONS = 1000
"""Of a method that trains, where nothing else is said; shared out evenly among the modules."""


def scan_modules(net: nn.Module) -> tuple[str, ...]:
    """Prefixes of what lies in the modules around the scans: projections, gates and norms beside it."""
    found = []
    for name, module in net.named_modules():
        if any(site.kind == "scan" for site in sites_of(module)):
            alone = not any(sites_of(child) for child in module.children())
            found.append(name.rpartition(".")[0] if alone else name)
    return tuple(f"{name}." for name in found if name)


def method_within(value: str | Mapping[str, Any], where: str) -> tuple[PTQMethod, int | None]:
    """The method that a value of ``scan:`` names, and its iterations; None for one that has none.

    Args:
        value: a name, or ``{type: NAME, iterations: N, <options of the method>}``.
        where: the key's path, for messages.

    Raises:
        SpecError: an unknown method, option or value; iterations of a method that does not train.
    """
    config = {"type": value} if isinstance(value, str) else dict(value)
    given = config.pop("iterations", None)
    Option("", "", choices=METHODS).check(config.get("type"), f"{where}.type")
    method = build_method(config, where)
    if not method.trains:
        if given is not None:
            raise SpecError(f"{where}.iterations: {config['type']} does not train; leave it out.")
        return method, None
    if given is None:
        return method, ITERATIONS
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise SpecError(f"{where}.iterations: expected a whole number from 1 on, got {given!r}.")
    return method, given


class MethodWithin(Option):
    """The option ``scan:``: ``own``, the name of a method, or a mapping with its options."""

    def mistakes(self, value: Any, where: str):
        if not isinstance(value, Mapping):
            yield from super().mistakes(value, where)
            return
        try:
            method_within(value, where)
        except SpecError as err:
            yield str(err)


def apply_within(
    method: PTQMethod,
    net: nn.Module,
    batches: Sequence[Tensor],
    modules: Sequence[str],
    iterations: int | None = None,
) -> None:
    """Let a method transform, and set the quantizers of, some modules; everything else of the network is left as it is.

    The method works on a copy whose other sites are in full precision and have no transforms. One that goes block by block
    takes each of the modules for a block.

    Args:
        method: confined from now on.
        net: the quantizers of the modules are MinMax; what a norm or layer in front of a module computes may be rescaled.
        batches: see :meth:`PTQMethod.apply`.
        modules: prefixes, with a dot at the end.
        iterations: of a method that trains.

    Raises:
        ValueError: the method leaves what an ordinary network does not have, or too few iterations.
    """
    method.within = tuple(modules)
    part = copy.deepcopy(net)
    for name, place in places(part).items():
        if place.transform is not None and not method.reaches(name):
            place.set_transform(None)
    leave_out([placed for placed in network_sites(part) if not method.reaches(placed.site.name)])
    before = {key: tensor.shape for key, tensor in part.state_dict().items()}
    method.apply(part, batches, iterations) if method.trains else method.apply(part, batches)
    require_ordinary(part, type(method).__name__, before)
    net.load_state_dict({**net.state_dict(), **part.state_dict()})
