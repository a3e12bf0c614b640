"""The arguments of ``tools.ptq_rows``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add, positive
from ..recipes.ptq_contents import METHODS
from . import for_command

SETS = ("Set5", "Set14", "B100")


def duration(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.ptq_rows")
    add(parser, "--root", default=Path("datasets"))
    add(parser, "--checkpoint", "full precision, for a single scale; default: that of the option files")
    add(parser, "--out", default=Path("ptq_rows"))
    add(parser, "--scales", default=[4], nargs="+", choices=(2, 3, 4))
    add(parser, "--bits", "1 is for SPR2Q alone", default=[4, 2], nargs="+")
    parser.add_argument(
        "--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS), metavar="NAME", help="default: all"
    )
    add(parser, "--sets", default=list(SETS), nargs="+", choices=SETS)
    parser.add_argument(
        "--minutes", type=duration, default=60.0, metavar="N", help="for a row's quantization (default: 60)"
    )
    parser.add_argument(
        "--until", type=duration, metavar="SECONDS", help="end by itself, finished or not; what is done stays"
    )
    parser.add_argument(
        "--only",
        choices=("calibrate", "quantize", "test"),
        help="a part of the work: where methods that train end to end begin, the weights, the figures; default: all",
    )
    add(parser, "--jobs", "rows that are quantized, in threads", default=1)
    add(parser, "--iterations", "default: the recipe's, or what the minutes allow")
    parser.add_argument(
        "--batch", type=positive, default=8, metavar="N", help="images of an iteration, end to end (default: 8)"
    )
    add(parser, "--samples", "which searches look at; default: the method's own number")
    parser.add_argument(
        "--patches", type=positive, default=32, metavar="N", help="for calibration, in eights (default: 32)"
    )
    parser.add_argument(
        "--photographs", type=Path, metavar="FILE", help="names of the training photographs; default: 395 of BSDS500"
    )
    add(parser, "--device", default="cpu")
    add(parser, "--any-code")
    add(parser, "--read-only")
    add(parser, "--rerun")
    return parser
