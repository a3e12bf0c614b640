"""The quantizers that an option file can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .base import Quantizer

    Registered = TypeVar("Registered", bound=type[Quantizer])

QUANTIZER_REGISTRY: dict[str, type[Quantizer]] = {}
"""Name in option files (``type``) -> class."""


def register_quantizer(cls: Registered) -> Registered:
    """Class decorator: make a quantizer available under its class name.

    Raises:
        ValueError: another quantizer has the name.
    """
    if cls.__name__ in QUANTIZER_REGISTRY:
        raise ValueError(
            f"a quantizer called {cls.__name__} is registered already ({QUANTIZER_REGISTRY[cls.__name__]})"
        )
    QUANTIZER_REGISTRY[cls.__name__] = cls
    return cls
