"""Rows of post-training methods on real weights: each quantizes the same network from the same images, and is tested.

    python -m qmambair_basicsr.tools.ptq_rows --scales 4 --bits 4 2 --methods MinMax SPR2Q [--out ptq_rows] [--minutes 8]

Run it where the option files' folders are: full-precision weights in ``experiments/pretrained_models``, image sets in
``datasets`` (``tools.prepare_data``; ``--root`` names another folder). Networks, sites, images, seeds and the methods' own
options are those of ``recipes/ptq_contents.py``; a row differs from its option file in its budget alone.

A method that trains takes its recipe's iterations, or as many as fit into ``--minutes`` of processor time (on a GPU, of
time), calibration included: a few steps are timed on a copy, then the number is settled and the learning rate's schedule with it. At least as
many as the method needs are made, whatever the time. Patches of the training are drawn by one seed, the same for all. With
``--device cuda``, iterations of methods that train end to end are recorded as CUDA graphs, and their number follows what the last ones
took until SPR2Q's routing begins; passes of the tests are recorded, too. Where that is not possible a line says why, and they run eagerly.

``OUT/ptq_rows.md`` and ``.csv`` hold what is finished beside published figures, and name what is missing; the first is
printed. What is finished is not repeated unless what it was made from has changed (``--rerun``: all of it; ``--any-code``:
other versions of the code do not count), and after a kill the row at hand begins again, unless it is quantized.

Several such commands share one ``--out``, each on a device of its own choice: a row belongs to the process that has begun it. ``--only
quantize`` leaves the tests to another one, which ``--only test --until SECONDS`` has wait for more. ``--only calibrate`` works out
where methods that train end to end begin, and keeps it (``OUT/calibrated``) for whoever trains them, such as a GPU that is lent by the minute. After ``--until`` seconds a command
ends by itself: rows that cannot be finished any more are not begun, weights of a row whose test is cut off stay, and so do
figures of its finished sets.

``--jobs N`` quantizes N rows at a time in one process, whose streams a GPU serves side by side; processes it serves one after the
other. Only recorded iterations overlap: for all else threads take turns, so on a CPU, and with methods that train block by block,
it gains nothing. A row's minutes go on while it waits for its turn. Weights are those of ``--jobs 1`` where the number of
iterations is; tests stay one at a time, behind the last row.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.ptq_rows import build_parser
from ..studies import ptq_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 when a row failed, 2 after a mistake."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_tool(lambda: 1 if ptq_rows.run(args) else 0)


if __name__ == "__main__":
    sys.exit(main())
