"""Which quantizers the keys of a quantized network stand for.

The keys below a site say the type of its quantizer, alone or among a few; where several have the same keys, the type
that the network uses elsewhere, then the order of ``quantizers/README.md``, decides. Only RFA and N2UQ show their bits, in
the length of a table. The others have those of the site that shows them, since published networks have the same bits
everywhere; or those that the file's name (``w4a8``) or the caller says. What no key shows (``mode`` and other options
without parameters) is the default.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from ..checkpoints import CheckpointError
from ..layers.detection import Keys
from ..layers.prepare import site_kinds, sites_within
from ..quantizers.registry import QUANTIZER_REGISTRY
from ..quantizers.site import Site
from ..quantizers.spec import SpecError

__all__ = ["UnknownBitsError", "quant_blocks"]

logger = logging.getLogger("basicsr")
_NAMED_BITS = re.compile(r"_w(\d+)a(\d+)(?![a-z0-9])")
_FULL = {"type": "Identity", "bits": 32}


class UnknownBitsError(CheckpointError):
    """Keys show which quantizers a network has, but not how many bits."""


@dataclass(frozen=True)
class Match:
    """One way to read the keys of a site.

    Attributes:
        type: of the quantizer.
        options: those that change keys or shapes.
        bits: where the keys show them, else None.
    """

    type: str
    options: tuple[tuple[str, object], ...]
    bits: int | None


def quant_blocks(
    twin: str, block: Mapping, keys: Keys, extra: set[str], path: str | Path, bits: tuple[int, int] | None
) -> Iterator[dict]:
    """The ``quant:`` blocks that may have made the keys of a quantized network, likeliest first.

    Args:
        twin: registered name of the quantized network.
        block: ``network_g`` of the full-precision network.
        keys: of the file.
        extra: those that the full-precision network lacks.
        path: of the file.
        bits: of weights and activations, from the caller.

    Raises:
        UnknownBitsError: nothing says them.
    """
    options = {key: copy.deepcopy(value) for key, value in block.items() if key != "type"}
    with torch.device("meta"):
        net = ARCH_REGISTRY.get(twin).before_prepare(**options)
    found = _matches(net, keys, extra)
    if found is None:
        return
    sites, matches = found
    types = _types(sites, matches)
    width = _bits(matches, path, bits)
    specs = [_spec(site, match, types, width) for site, match in zip(sites, matches, strict=True)]
    kinds = site_kinds(net)
    for policy in ("code", "paper"):
        quant = {kind: _usual(kind, sites, specs, net) for kind in kinds}
        yield {kind: spec for kind, spec in quant.items() if spec["bits"] != 32} | {"act_policy": policy}
    usual = {kind: quant[kind] for kind in kinds if quant[kind]["bits"] != 32}
    yield {**usual, "act_policy": "code", "overrides": _overrides(sites, specs)}


def _matches(net: nn.Module, keys: Keys, extra: set[str]) -> tuple[list[Site], list[list[Match]]] | None:
    """The sites of a network and the ways to read the keys of each; None where keys are not those of quantizers."""
    sites = sites_within(net)
    below: dict[str, dict[str, tuple[int, ...]]] = {site.quantizer_path: {} for site in sites}
    for name in extra:
        owner, _, leaf = name.rpartition(".")
        if owner not in below:
            return None
        below[owner][leaf] = keys[name]
    cache: dict[tuple, list[Match]] = {}
    matches = []
    for site in sites:
        leaves = below[site.quantizer_path]
        shape = tuple(sorted(leaves.items())), site.role, site.channels, site.channel_dim, site.shape
        if shape not in cache:
            cache[shape] = list(_readings(site, leaves))
        if leaves and not cache[shape]:
            return None
        matches.append(cache[shape])
    return sites, matches


def _readings(site: Site, leaves: Mapping[str, tuple[int, ...]]) -> Iterator[Match]:
    """Every quantizer that has exactly these entries at a site."""
    plain = Site(site.kind, site.role, site.channels, site.channel_dim, site.shape)
    for name, cls in QUANTIZER_REGISTRY.items() if leaves else ():
        single = [((key, choice),) for key, option in cls.options.items() for choice in option.choices or ()]
        pairs = ((*a, *b) for a, b in itertools.combinations(single, 2) if a[0][0] != b[0][0])
        seen: set[tuple] = set()
        alike = False  # the same names; only then may two options together explain the shapes
        for options in itertools.chain([()], single, (pair for pair in pairs if alike and not seen)):
            few, more = (_entries(name, bits, options, plain) for bits in (cls.bit_widths[0], cls.bit_widths[-1]))
            if few is None or few.keys() != leaves.keys():
                continue
            alike = True
            widths = cls.bit_widths if few != more else cls.bit_widths[-1:]
            fitting = tuple(bits for bits in widths if _entries(name, bits, options, plain) == leaves)
            if fitting and fitting not in seen:  # the default options first
                seen.add(fitting)
                yield Match(name, options, fitting[0] if few != more and len(fitting) == 1 else None)


@functools.cache
def _entries(name: str, bits: int, options: tuple, site: Site) -> dict[str, tuple[int, ...]] | None:
    """Entries of a quantizer's state_dict with their shapes; None where there is no such quantizer."""
    try:
        state = QUANTIZER_REGISTRY[name](bits, site, **dict(options)).state_dict()
    except (SpecError, ValueError, TypeError):
        return None
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _types(sites: list[Site], matches: list[list[Match]]) -> dict[str, int]:
    """Type -> its rank: one that explains more sites alone or among others comes first, then the registry's order."""
    alone = Counter(readings[0].type for readings in matches if len({m.type for m in readings}) == 1)
    among = Counter(name for readings in matches for name in {m.type for m in readings})
    order = list(QUANTIZER_REGISTRY)
    ranked = sorted(order, key=lambda name: (-alone[name], -among[name], order.index(name)))
    return {name: rank for rank, name in enumerate(ranked)}


def _bits(matches: list[list[Match]], path: str | Path, given: tuple[int, int] | None) -> tuple[int, int]:
    """Bits of weights and of activations, of quantizers that do not show them.

    Raises:
        UnknownBitsError: nothing says them.
    """
    if given is not None:
        return given
    for part in (Path(path).name, *reversed(Path(path).parts)):
        if named := _NAMED_BITS.search(part):
            return int(named[1]), int(named[2])
    shown = Counter(m.bits for readings in matches for m in readings[:1] if m.bits is not None)
    if shown:
        bits = shown.most_common(1)[0][0]
        logger.info("%s: some quantizers show %d bits, and the others are taken to have as many", path, bits)
        return bits, bits
    raise UnknownBitsError(
        f"{path}: its quantizers are known, but their keys do not show how many bits they have; say it (bits=(4, 4); "
        "commands: --bits 4), give its option file (opt=; commands: -opt), or a name with w4a4 in it"
    )


def _spec(site: Site, readings: list[Match], types: dict[str, int], width: tuple[int, int]) -> dict:
    """The settings of one site."""
    if not readings:
        return dict(_FULL)
    best = min(readings, key=lambda match: types[match.type])
    usual = width[0] if site.role == "weight" else width[1]
    return {"type": best.type, "bits": best.bits or usual, **dict(best.options)}


def _usual(kind: str, sites: list[Site], specs: list[dict], net: nn.Module) -> dict:
    """The settings that most sites of a kind have; ``act_policy`` decides about the others of ``act``."""
    own = [repr(sorted(spec.items())) for site, spec in zip(sites, specs, strict=True) if site.kind == kind]
    usual = Counter(own).most_common(1)[0][0]
    return next(
        spec
        for site, spec in zip(sites, specs, strict=True)
        if site.kind == kind and repr(sorted(spec.items())) == usual
    )


def _overrides(sites: list[Site], specs: list[dict]) -> dict:
    """The settings of every site by its name, for networks that were made with overrides."""
    found: dict[str, dict] = {}
    for site, spec in zip(sites, specs, strict=True):
        found.setdefault(site.name, {})[site.kind] = spec
    return found
