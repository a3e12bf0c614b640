"""The arguments of ``tools.calibrate``."""

from __future__ import annotations

import argparse

from ..arguments import add
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.calibrate")
    add(parser, "-opt", "its network_g must be quantized", required=True)
    add(parser, "--checkpoint", "of the full-precision network; without, random weights")
    add(parser, "--param-key", default="params")
    add(parser, "--seed", "for random weights", default=0)
    add(parser, "--images", "like those it will see", required=True)
    add(parser, "--count", default=16)
    add(parser, "--middle", default=128)
    add(parser, "--output", "a checkpoint (.pth)", required=True)
    return parser
