"""Quantizers: one file per published quantizer, one registry, one way to build them.

A new quantizer is one file plus one line in ``QUANTIZER_REGISTRY`` (see README.md in this folder).
"""

from __future__ import annotations

from .base import Quantizer, UncalibratedError
from .dls import DLS
from .dorefa import DoReFa
from .identity import Identity
from .lsq import LSQ
from .lsq_offset import LSQOffset
from .lsq_plus import LSQPlus
from .minmax import MinMax
from .n2uq import N2UQ
from .pams import PAMS
from .quantsr import QuantSR
from .rfa import RFA
from .soft_ste import SoftSTE
from .spec import QuantizerSpec, QuantSpec, SpecError

QUANTIZER_REGISTRY: dict[str, type[Quantizer]] = {
    "DLS": DLS,
    "RFA": RFA,
    "LSQOffset": LSQOffset,
    "LSQ": LSQ,
    "LSQPlus": LSQPlus,
    "PAMS": PAMS,
    "QuantSR": QuantSR,
    "SoftSTE": SoftSTE,
    "N2UQ": N2UQ,
    "DoReFa": DoReFa,
    "MinMax": MinMax,
    "Identity": Identity,
}


def build_quantizer(
    spec: QuantizerSpec,
    *,
    role: str,
    channels: int | None = None,
    channel_dim: int | None = None,
    name: str = "",
    copies: int = 1,
) -> Quantizer:
    """Build the quantizer that ``spec`` describes.

    Args:
        spec: validated settings; 32 bits build :class:`Identity` whatever the type.
        role: ``weight``, ``act`` (dim 0 is the batch) or ``param`` (no batch dimension).
        channels: size of the channel dimension; needed by per-channel options.
        channel_dim: index of the channel dimension (may be negative); needed by per-channel options.
        name: place in the network, for messages.
        copies: see :class:`Quantizer`.

    Raises:
        SpecError: an option needs the channel count or dimension and it is None.
    """
    shape = {"role": role, "channels": channels, "channel_dim": channel_dim, "name": name, "copies": copies}
    if spec.bits == 32:
        return Identity(32, **shape)
    return QUANTIZER_REGISTRY[spec.type](spec.bits, **shape, **spec.options)


__all__ = [
    "DLS",
    "LSQ",
    "N2UQ",
    "PAMS",
    "QUANTIZER_REGISTRY",
    "RFA",
    "DoReFa",
    "Identity",
    "LSQOffset",
    "LSQPlus",
    "MinMax",
    "QuantSR",
    "QuantSpec",
    "Quantizer",
    "QuantizerSpec",
    "SoftSTE",
    "SpecError",
    "UncalibratedError",
    "build_quantizer",
]
