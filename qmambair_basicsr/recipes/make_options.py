"""Listing, writing and checking option files; ``tools.make_options`` is the command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..files import write_text
from . import option_names
from .option_networks import WITH_ATTENTION
from .option_table import CONV_FP
from .ptq_contents import METHODS as POST_TRAINING


def listing() -> str:
    """Every name in the usual widths by the published method, and what else a name can say."""
    names = [row.name for row in option_names.rows()]
    ways = ", ".join(filter(None, option_names.all_methods("MambaIR")))
    return "\n".join(
        [
            *names,
            "# _wNaM for other widths: N bits of weights and M of activations, from 1 to 8 where the quantizers have them",
            f"# _{CONV_FP} or _{CONV_FP}_METHOD: the placement of 2DQuant, CondiQuant and SPR2Q in {', '.join(WITH_ATTENTION)}",
            "# ptq_Q{network}_{task}_w4a4_METHOD quantizes by a post-training method, test_Q... tests what it leaves: "
            + ", ".join(POST_TRAINING),
            f"# _METHOD behind the widths for another method than Q-MambaIR: {ways}",
            "",
        ]
    )


def write(rows: Sequence[option_names.Row], folder: Path, overwrite: bool) -> None:
    """Write files that do not exist or, with ``overwrite``, differ from the table.

    Raises:
        ValueError: a file is there with other contents.
    """
    for row in rows:
        path, text = folder / f"{row.name}.yml", row.text()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            sys.stderr.write(f"{path} is up to date\n")
            continue
        if path.exists() and not overwrite:
            raise ValueError(f"{path} has other contents, perhaps yours; --overwrite replaces it")
        write_text(path, text)
        sys.stderr.write(f"wrote {path}\n")


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks; returns the exit status.

    Raises:
        OptionNameError: a name that stands for nothing.
        ValueError: a file with other contents is in the way.
    """
    if args.list:
        sys.stdout.write(listing())
        return 0
    if args.check:
        names = option_names.drifted(args.out)
        for name in names:
            sys.stderr.write(f"{args.out / name}.yml: differs from recipes/option_table.py\n")
        return 1 if names else 0
    rows = [option_names.parse(Path(name).name) for name in args.name]
    write(rows or option_names.published(), args.out, args.overwrite)
    return 0
