"""Quantize a network to 2 bits in minutes, on the CPU, with nothing downloaded: ``make demo``.

    python -m qmambair_basicsr.tools.demo [--bits 2] [--iterations 400] [--out demo]

Cuts small data sets from the photographs that scikit-image ships, fine-tunes the full-precision weights in
``qmambair_basicsr/assets`` with ``QATModel`` in BasicSR's own loop, and compares bicubic, full precision, the network
after calibration only and after training. Everything is written below ``--out``; its ``demo.log`` holds the output of
the runs, which are the commands a user would type.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..command_lines.demo import build_parser
from ..studies import demo


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 when a step failed."""
    return demo.run_all(build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
