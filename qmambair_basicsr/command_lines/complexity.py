"""The arguments of ``tools.complexity``."""

from __future__ import annotations

import argparse

from ..arguments import add, add_formats
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.complexity")
    what = parser.add_mutually_exclusive_group(required=True)
    add(what, "-opt")
    what.add_argument("--paper-accounting", action="store_true", help="reproduce Table 4 of Q-MambaIR instead")
    add(parser, "--height", "default: see above")
    add(parser, "--width", "default: see above")
    add(parser, "--full")
    add_formats(parser, "csv", "markdown", "json")
    return parser
