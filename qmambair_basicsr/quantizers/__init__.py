"""Quantizers: one file per published quantizer, one registry, one way to build them.

A new quantizer is one file in this folder (see README.md here).
"""

from __future__ import annotations

import importlib
import pkgutil

from .any_order import AnyOrder
from .base import Quantizer, UncalibratedError
from .dls import DLS
from .dorefa import DoReFa
from .encoded import AffineCodes, BinaryOrders, Encoded
from .identity import Identity
from .lsq import LSQ
from .lsq_offset import LSQOffset
from .lsq_plus import LSQPlus
from .minmax import MinMax
from .n2uq import N2UQ
from .pams import PAMS
from .quantsr import QuantSR
from .registry import QUANTIZER_REGISTRY, register_quantizer
from .rfa import RFA
from .seq import SEQ
from .site import Derived, Site
from .soft_ste import SoftSTE
from .spec import QuantizerSpec, QuantSpec, SpecError


def build_quantizer(spec: QuantizerSpec, site: Site) -> Quantizer:
    """Build the quantizer that ``spec`` describes for a site.

    Args:
        spec: validated settings; 32 bits build :class:`Identity` whatever the type.
        site: what it will quantize.

    Raises:
        SpecError: an option needs the site's channels and they are not known.
    """
    if spec.bits == 32:
        return Identity(32, site)
    return QUANTIZER_REGISTRY[spec.type](spec.bits, site, **spec.options)


def load_quantizers() -> None:
    """Import every module of this folder, so that its quantizers are registered."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


load_quantizers()

__all__ = [
    "DLS",
    "LSQ",
    "N2UQ",
    "PAMS",
    "QUANTIZER_REGISTRY",
    "RFA",
    "SEQ",
    "AffineCodes",
    "AnyOrder",
    "BinaryOrders",
    "Derived",
    "DoReFa",
    "Encoded",
    "Identity",
    "LSQOffset",
    "LSQPlus",
    "MinMax",
    "QuantSR",
    "QuantSpec",
    "Quantizer",
    "QuantizerSpec",
    "Site",
    "SoftSTE",
    "SpecError",
    "UncalibratedError",
    "build_quantizer",
    "register_quantizer",
]
