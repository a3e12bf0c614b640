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
    parser.add_argument("--networks", nargs="+", choices=names, default=list(names), help="default: all")
    add(parser, "--out", default=Path("shipped"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument("--table", action="store_true", help="test full precision and the network, beside the input")
    add(parser, "--sets", "of --table; default: all", default=[], nargs="+")
    return parser
