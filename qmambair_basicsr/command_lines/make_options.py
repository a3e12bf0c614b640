"""The arguments of ``tools.make_options``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.make_options")
    parser.add_argument(
        "name", nargs="*", metavar="NAME", help="file to make, without folder; without, the committed ones"
    )
    add(parser, "--out", default=Path("options"))
    add(parser, "--list", "names of option files")
    add(parser, "--overwrite")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs from the table")
    return parser
