"""The arguments of ``tools.placement``."""

from __future__ import annotations

import argparse

from ..arguments import add, add_formats
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.placement")
    add(parser, "-opt", required=True)
    add(parser, "--full")
    add_formats(parser, "csv", "markdown")
    return parser
