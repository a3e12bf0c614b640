"""The arguments of ``tools.sensitivity``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add, add_formats
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.sensitivity")
    add(parser, "-opt", "its network_g must be quantized", required=True)
    add(parser, "--checkpoint", "of the full-precision network; without, random weights")
    add(parser, "--param-key", default="params")
    add(parser, "--seed", "for random weights and directions", default=0)
    add(parser, "--images", "like those it will see", required=True)
    add(parser, "--count", default=4)
    add(parser, "--middle", default=64)
    add(parser, "--bits", "those to rate", default=[2, 4, 8], nargs="+")
    parser.add_argument(
        "--kind",
        choices=("weight", "act", "scan", "attention", "all"),
        default="weight",
        help="sites to rate and to give bits to (default: weight)",
    )
    parser.add_argument("--direct", action="store_true", help="measure as well: one site quantized at a time (slow)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="heat map of the scores, a .png")
    parser.add_argument(
        "--average", type=float, metavar="BITS", help="share bits out so that their average is at most this"
    )
    parser.add_argument(
        "--abmp", action="store_true", help="bits by Quant-dLLM's rule: 3 for the top 5 %%, 1 for the last"
    )
    add(parser, "--output", "the option file with the bits as overrides")
    add_formats(parser, "csv", "markdown")
    return parser
