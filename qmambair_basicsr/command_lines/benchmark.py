"""The arguments of ``tools.benchmark``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add
from . import for_command

EXTRA_METRICS = ("lpips", "lpips_vgg", "st_lpips")


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.benchmark")
    add(parser, "-opt", "test files", required=True, nargs="+")
    add(parser, "--out", default=Path("benchmark"))
    parser.add_argument("--results", type=Path, default=Path("results"), help="BasicSR's results (default: results)")
    add(parser, "--read-only")
    parser.add_argument("--metrics", nargs="+", default=[], choices=EXTRA_METRICS, help="besides the file's")
    add(parser, "--force_yml", "of every test", default=[], nargs="+")
    add(parser, "--rerun")
    add(parser, "--page", "of details and errors of the tests' images")
    return parser
