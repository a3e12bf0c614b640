"""Facts about a network that the rest of the package needs, in one place for each architecture.

An arch file registers a function that returns a :class:`NetworkInfo`; a class of another package (BasicSR's own EDSR and
SwinIR) gets one in the same way, from outside::

    @network_info.register(EDSR)
    def _(net: EDSR) -> NetworkInfo:
        return NetworkInfo(scale=net.upscale, full_precision=("conv_first", "upsample.*", "conv_last"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import singledispatch

from torch import nn

from ..strict import nearest

TWINS: dict[str, str] = {}
"""Registered name of a quantized network -> that of the full-precision one with the same graph."""


@dataclass(frozen=True)
class NetworkInfo:
    """Facts about one network. Patterns are ``fnmatch`` patterns on dotted module names.

    Attributes:
        channels: of the images that the network takes.
        scale: output pixels per input pixel along a side.
        size_multiple: the sides of an input must be multiples of it; others are padded by whoever runs the network.
        full_precision: layers that are never quantized.
        routing: linears and embeddings that pick tokens, quantized by ``quant: routing`` only. A decision that rounding
            turns is visible, so they also keep FP32 in an FP16 export.
        group_convs: convolutions behind a group of blocks, or the modules around them, which ``quant: conv`` may leave in
            full precision; a ``*`` stands for one part of a name (:func:`match_modules`).
        behind_scan: layers whose input takes the scan's quantizer under ``act_policy: code`` (see ``policy.py``).
        sources: inside each block, products whose input one module computes for them alone, channel by channel, so that a
            factor on the input can be folded into that module: (name of the product, name of the module), or
            (product, module, i, n) where the i-th of n equal parts of the module's rows do. Names are relative to the block;
            those that a configuration does not have are passed over.
        blocks: the repeated residual blocks, for block-wise methods and feature losses; here a ``*`` stands for one part
            of a name (:func:`match_modules`).
        random_routing: whether evaluation draws noise, so that a graph of it would need a random generator.
        twin: registered name of the full-precision network with the same graph; None for full-precision networks.
    """

    channels: int = 3
    scale: int = 1
    size_multiple: int = 1
    full_precision: tuple[str, ...] = ()
    routing: tuple[str, ...] = ()
    group_convs: tuple[str, ...] = ()
    behind_scan: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    sources: tuple[tuple[str, str] | tuple[str, str, int, int], ...] = ()
    random_routing: bool = False
    twin: str | None = None

    def keeps(self, name: str) -> bool:
        """Whether the layer called ``name`` stays in full precision."""
        return any(fnmatchcase(name, pattern) for pattern in self.full_precision)

    def routes(self, name: str) -> bool:
        """Whether the layer called ``name`` picks tokens."""
        return any(fnmatchcase(name, pattern) for pattern in self.routing)


@singledispatch
def network_info(net: nn.Module) -> NetworkInfo:
    """The facts about a network, from the function registered for its class (or a base class).

    Raises:
        ValueError: none is registered.
    """
    raise ValueError(
        f"nothing is known about {type(net).__name__}: register a function with @network_info.register that returns its "
        "NetworkInfo (layers/info.py)."
    )


def size_multiple(net: nn.Module) -> int:
    """Number that both sides of an input must be multiples of; 1 where nothing is known."""
    known = network_info.dispatch(type(net)) is not network_info.dispatch(object)
    return network_info(net).size_multiple if known else 1


def full_precision_twin(network_type: str) -> str | None:
    """Registered name of the full-precision network of a quantized one, without building either; None if it has none."""
    return TWINS.get(network_type)


def blocks_of(net: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of the network's residual blocks, in its order.

    Raises:
        ValueError: nothing is known about the network, or a pattern of its ``blocks`` matches no module.
    """
    modules = dict(net.named_modules())
    return {name: modules[name] for name in match_modules(net, network_info(net).blocks)}


def match_modules(net: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the modules that match any pattern, in the network's order.

    Args:
        net: network.
        patterns: dotted names; ``*``, ``?`` and ``[...]`` match within one part, so ``layers.*`` means the modules
            directly in ``layers`` and none inside these.

    Raises:
        ValueError: a pattern matches nothing.
    """
    names = [name for name, _ in net.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        parts = pattern.split(".")
        hits = [
            name
            for name in names
            if len(split := name.split(".")) == len(parts) and all(map(fnmatchcase, split, parts))
        ]
        if not hits:
            close = nearest(pattern, names, 3, 0.3)
            raise ValueError(
                f"layers: {pattern!r} matches no module of {type(net).__name__}; similar names: "
                f"{', '.join(close) or ', '.join(names[:5])}"
            )
        found.update(hits)
    return [name for name in names if name in found]
