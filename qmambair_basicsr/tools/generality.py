"""Do DLS and RFA help beyond MambaIR? Eight small networks, one recipe, on a CPU: full precision, LSQ, QuantSR, Q-MambaIR.

    python -m qmambair_basicsr.tools.generality --source FOLDER [--out generality] [--networks SwinIR MaIR] [--repeats 3]

``FOLDER`` is that of ``tools.reduced_tasks``. Every network is trained in full precision from scratch and then, from these
weights, at every width by every method, with the same iterations, patches, batches, optimizer, learning rate and loss.
Networks are compared with themselves only: super-resolution by 2 where they can, else denoising. Networks without a
scan (SwinIR, EDSR) are also given DLS on all inputs, which the placement of the released code leaves without any.
The table is in ``generality.md`` of the folder and printed at the end; what is finished is not repeated unless what it was
made from has changed, or with ``--rerun``. By default 60 trainings: hours on a CPU.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..command_lines.generality import build_parser
from ..studies import generality
from . import prepare_data


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return generality.run(args, prepare_data.main)


if __name__ == "__main__":
    sys.exit(main())
