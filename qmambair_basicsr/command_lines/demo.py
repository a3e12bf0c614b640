"""The arguments of ``tools.demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.demo")
    add(parser, "--bits", default=2, choices=(2, 4))
    add(parser, "--iterations", "default: as the option file says")
    add(parser, "--out", default=Path("demo"))
    return parser
