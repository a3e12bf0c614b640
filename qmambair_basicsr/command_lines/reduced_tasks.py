"""The arguments of ``tools.reduced_tasks``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add
from ..recipes.reduced_table import ALL_SETS, REDUCED
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.reduced_tasks")
    add(parser, "--source", "see above", required=True)
    add(parser, "--out", default=Path("reduced_tasks"))
    parser.add_argument("--tasks", nargs="+", choices=tuple(REDUCED), default=list(REDUCED), help="default: all")
    add(parser, "--sets", "default: all", default=[], nargs="+", choices=ALL_SETS)
    add(parser, "--bits", "32, or a width; a width needs 32 before it", default=[32], nargs="+")
    add(parser, "--iterations", default=200)
    add(parser, "--rerun")
    return parser
