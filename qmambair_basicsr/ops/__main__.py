"""``python -m qmambair_basicsr.ops``: the table of operators and backends on this machine."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from ..command_lines.ops import build_parser
from . import __path__ as ops_path
from .backend import ENV, backends, forced


def main() -> None:
    """Write one line per operator and backend: name, yes or no, reason."""
    build_parser().parse_args()
    out = sys.stdout
    out.write(f"{ENV}={forced() or '(unset: fastest available for the device)'}\n")
    out.write(f"{'operator':<16} {'backend':<10} {'usable':<7} reason\n")
    for info in pkgutil.iter_modules(ops_path):
        if not info.ispkg or not hasattr(importlib.import_module(f"{__package__}.{info.name}"), "BACKENDS"):
            continue
        for backend in backends(info.name):
            available, reason = backend.is_available()
            out.write(f"{info.name:<16} {backend.name:<10} {'yes' if available else 'no':<7} {reason}\n")


main()
