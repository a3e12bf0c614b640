"""The arguments of ``tools.shipped``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add
from ..inference.shipped import shipped
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.shipped")
    names = tuple(shipped())
    add(parser, "--networks", "default: all", nargs="+", choices=names, default=list(names))
    add(parser, "--out", default=Path("shipped"))
    add(parser, "--dry-run", "prints the commands")
    parser.add_argument("--table", action="store_true", help="test full precision and the network, beside the input")
    add(parser, "--sets", "of --table; default: all", default=[], nargs="+")
    return parser
