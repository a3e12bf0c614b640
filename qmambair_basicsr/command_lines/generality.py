"""The arguments of ``tools.generality``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add, positive
from ..recipes.generality_table import ALL_SETS, NETWORKS
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.generality")
    add(parser, "--source", "default: the sets are in OUT/datasets already")
    add(parser, "--out", default=Path("generality"))
    add(parser, "--networks", "default: all", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    add(parser, "--sets", "default: all", default=list(ALL_SETS), nargs="+", choices=ALL_SETS)
    add(parser, "--bits", "32 alone: only full precision", default=[4, 2], nargs="+")
    add(parser, "--iterations", "of full-precision training", default=3000)
    parser.add_argument(
        "--quantized-iterations", type=positive, default=1000, metavar="N", help="of every quantized training"
    )
    parser.add_argument(
        "--repeats",
        dest="seeds",
        type=positive,
        default=1,
        metavar="N",
        help="trainings of each kind, which differ in the seed (default: 1)",
    )
    add(parser, "--jobs", "trainings, one thread each", default=1)
    add(parser, "--device", default="cpu")
    add(parser, "--any-code", "generality.csv says which torch it was")
    add(parser, "--read-only")
    add(parser, "--rerun")
    return parser
