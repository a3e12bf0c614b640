"""The arguments of ``tools.ablation``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add, natural
from . import for_command

STUDIES = (
    "methods",
    "components",
    "activations",
    "weights",
    "placement",
    "statistics",
    "mode",
    "init",
    "plus",
)  # keys of studies.ablation_studies.studies()


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.ablation")
    add(parser, "-opt", "a training file of a quantized network", required=True)
    add(parser, "--checkpoint", "that all trainings start from; default: the option file's")
    parser.add_argument("--test", type=Path, help="test option file; default: beside -opt, test_ for train_")
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), help=f"default: all ({', '.join(STUDIES)})")
    parser.add_argument("--variants", nargs="+", help="only these rows, by name pattern; every study's first row stays")
    add(parser, "--bits", default=[4, 2], nargs="+")
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0, 1, 2], help="of the trainings (default: 0 1 2)")
    add(parser, "--iterations", "default: the file's")
    add(parser, "--sets", "of the test file (default: all) or of the recipes, such as 'BSDS400T91 val'", nargs="+")
    add(parser, "--middle", "of the ground truth of the test sets")
    add(parser, "--root", "default: as in the files")
    add(parser, "--out", default=Path("ablation"))
    add(parser, "--force_yml", "of the trainings", default=[], nargs="+")
    parser.add_argument(
        "--image-memory", type=natural, default=1024, help="MiB of decoded images to keep (default: 1024)"
    )
    add(parser, "--list", "the runs, and whether they are finished")
    add(parser, "--any-code")
    add(parser, "--read-only")
    add(parser, "--rerun")
    return parser
