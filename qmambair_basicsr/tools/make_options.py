"""Write ``options/*.yml`` from :mod:`qmambair_basicsr.recipes.option_table`.

python -m qmambair_basicsr.tools.make_options            # write them all
python -m qmambair_basicsr.tools.make_options --check    # exit 1 when a file differs from the table
"""

from __future__ import annotations

import argparse
import sys

from ..arguments import add, command_line
from ..files import write_text
from ..recipes import option_contents


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = command_line(__doc__, __spec__.name)
    add(parser, "--out", "default: the repository's options/", default=option_contents.OPTIONS)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file has drifted")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.check:
        names = option_contents.drifted(args.out)
        for name in names:
            sys.stderr.write(f"{name}: differs from option_table.py\n")
        return 1 if names else 0
    wanted = option_contents.files()
    for name in option_contents.drifted(args.out):
        target = args.out / name
        if name in wanted:
            write_text(target, wanted[name])
        else:
            target.unlink()
        sys.stderr.write(f"{'wrote' if target.exists() else 'removed'} {target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
