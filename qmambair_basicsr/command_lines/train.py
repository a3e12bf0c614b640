"""The arguments of ``train``."""

from __future__ import annotations

import argparse

from .pipelines import pipeline_parser


def build_parser() -> argparse.ArgumentParser:
    """Command line of training."""
    return pipeline_parser("train")
