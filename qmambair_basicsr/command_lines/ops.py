"""The arguments of ``python -m qmambair_basicsr.ops``: none."""

from __future__ import annotations

import argparse

from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the table of operators."""
    return for_command("ops.__main__")
