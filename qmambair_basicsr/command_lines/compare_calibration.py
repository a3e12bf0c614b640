"""The arguments of ``tools.compare_calibration``."""

from __future__ import annotations

import argparse

from ..arguments import add, add_formats
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.compare_calibration")
    add(parser, "-opt", "its network_g must be quantized", required=True)
    add(parser, "--checkpoint", "of the full-precision network; default: the option file's")
    add(parser, "--param-key", default="params")
    add(parser, "--truth", required=True)
    add(parser, "--calibration", "of high resolution", required=True)
    add(parser, "--count", "of --calibration", default=16)
    add(parser, "--middle", default=192)
    add(parser, "--bits", default=[4, 2], nargs="+")
    add_formats(parser, "markdown")
    return parser
