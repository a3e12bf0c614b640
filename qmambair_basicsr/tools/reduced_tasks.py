"""Train and test a small network on every restoration task, on a CPU, with this repository's own commands.

    python -m qmambair_basicsr.tools.reduced_tasks --source FOLDER [--out reduced_tasks] [--tasks SRx2 CARq10]

``FOLDER`` holds ``train/*`` (folders of photographs) and ``test/{Set5,Set14,B100,McMaster,classic5,LIVE1}/HR`` and
``test/CC15/{GT,LQ}``. For each task the shipped option file is taken from the table, the network and the patches are
made small, ``prepare_data``, ``train`` and ``test`` run as a user would run them, and the PSNR of the result is put
beside that of the network's input (enlarged by MATLAB bicubic in super-resolution, where the network starts from
weights that interpolate bilinearly, ``reduced_start``). Steps that are done are not repeated unless what
they were made from has changed (the reason is said), or with ``--rerun``. This shows that every task works from files to figures; 200 iterations say nothing about quality.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..command_lines.reduced_tasks import build_parser
from ..studies import reduced_tasks
from . import prepare_data


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0 when every result is there and better than its input, else 1."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return reduced_tasks.run(args, prepare_data.main)


if __name__ == "__main__":
    sys.exit(main())
