"""Quantized Mamba image restoration as a BasicSR plugin.

Importing the package registers its archs, models, losses, datasets and metrics in BasicSR's registries.
"""

from __future__ import annotations

import importlib
import pkgutil

from .command_lines import answer_at_once

__version__ = "0.1.0"

answer_at_once()  # --help and mistakes in arguments need nothing of what follows

from . import threads  # noqa: E402

threads.apply()  # before torch is imported

from . import compat, preflight  # noqa: E402

compat.apply()  # before anything else that imports basicsr

# folder -> module suffix, as BasicSR's own registry scan does it
_REGISTERED = {"archs": "_arch", "models": "_model", "losses": "_loss", "data": "_dataset", "metrics": "_metric"}


def _register_all() -> None:
    """Import every module that registers something (``archs/*_arch.py``, ``models/*_model.py`` ...)."""
    for folder, suffix in _REGISTERED.items():
        package = importlib.import_module(f"{__name__}.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith(suffix):
                importlib.import_module(f"{package.__name__}.{module.name}")


_register_all()
preflight.install()
