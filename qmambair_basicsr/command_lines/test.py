"""The arguments of ``test``."""

from __future__ import annotations

import argparse

from .pipelines import pipeline_parser


def build_parser() -> argparse.ArgumentParser:
    """Command line of testing."""
    return pipeline_parser("test")
