"""Run test option files and write one table per task.

    python -m qmambair_basicsr.tools.benchmark -opt options/test_*SRx2*.yml [--out benchmark] [--read-only]
        [--metrics lpips] [--force_yml num_gpu=0 ...]

Every file is run by ``python -m qmambair_basicsr.test`` in the working directory; a file whose newest log already
holds every figure, of these weights, options, images and code, is not run again, so an interrupted benchmark goes on
where it stopped. ``--rerun`` runs all. ``--read-only`` runs nothing and takes what the logs hold, unless that is of other
inputs. A file that fails is listed in ``failures.txt``; the others are not affected. Tables
(``<task>.md``, ``.csv``, ``.tex``) are rewritten after every file. ``--page`` writes ``page.html``: details of the tests'
images below each other, with their errors as heat maps.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..command_lines.benchmark import build_parser
from ..studies import benchmark


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 when at least one file failed."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return benchmark.run(args)


if __name__ == "__main__":
    sys.exit(main())
