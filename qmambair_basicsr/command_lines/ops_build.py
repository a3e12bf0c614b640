"""The arguments of ``ops.build``."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the build of the CPU kernels."""
    parser = for_command("ops.build")
    parser.add_argument("--output", type=Path, metavar="FILE", help="library to write (default: beside the module)")
    parser.add_argument("--if-changed", action="store_true", help="do nothing when the library matches the sources")
    return parser
