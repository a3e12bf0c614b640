"""Do DLS and RFA help beyond MambaIR? Eight small networks, one recipe: full precision, LSQ, QuantSR, Q-MambaIR.

    python -m qmambair_basicsr.tools.generality --source FOLDER [--out generality] [--networks SwinIR MaIR] [--jobs 8]

``FOLDER`` is that of ``tools.reduced_tasks``. Every network is trained in full precision from scratch and then, from these
weights, at every width by every method, with the same iterations, patches, batches, optimizer, learning rate and loss.
Networks are compared with themselves only: super-resolution by 2 where they can, else denoising. Networks without a
scan (SwinIR, EDSR) are also given DLS on all inputs, which the placement of the released code leaves without any.

``OUT/generality.md``, ``.csv`` and ``.png`` hold what is finished, and name what is missing; the first is printed. What is
finished is not repeated unless what it was made from has changed (``--rerun``: all of it; ``--any-code``: other versions of
the code do not count), and a training that was stopped goes on, also where the folder was copied from another machine. By
default 60 trainings: hours on a few cores. ``--jobs`` trains several at the same time; one that fails is named, and only
what starts from it is left out.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.generality import build_parser
from ..studies import generality
from . import prepare_data


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 when a training failed, 2 after a mistake."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_tool(lambda: 1 if generality.run(args, prepare_data.main) else 0)


if __name__ == "__main__":
    sys.exit(main())
