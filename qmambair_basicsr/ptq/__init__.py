"""Post-training quantization: methods that choose the quantizers of a network from a few images, one file each.

A new method is one file in this folder (see README.md here).
"""

from __future__ import annotations

import importlib
import pkgutil

from .method import PTQ_METHODS, PTQMethod, build_method, quantize, register_method


def load_methods() -> None:
    """Import every module of this folder, so that its methods are registered."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


load_methods()

__all__ = ["PTQ_METHODS", "PTQMethod", "build_method", "load_methods", "quantize", "register_method"]
