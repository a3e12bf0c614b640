"""Draw what quantization does to a network, and what the results are worth. Every figure is written as PNG and PDF.

python -m qmambair_basicsr.tools.plot histograms -opt FILE --images datasets/Set5/LR_bicubic/X2   # before and after
python -m qmambair_basicsr.tools.plot ranges     -opt FILE --images datasets/Set5/LR_bicubic/X2   # DLS, mean +- 3 std
python -m qmambair_basicsr.tools.plot thresholds -opt FILE                                        # RFA against uniform
python -m qmambair_basicsr.tools.plot tradeoff   --tables benchmark/lightSRx2.csv --against size     # PSNR against size
python -m qmambair_basicsr.tools.plot crops      -opt FILE FILE --truth datasets/Set5/HR          # details side by side

FILE is a test option file. Weights come from its ``path: pretrain_network_g``, or from ``--checkpoint``. Needs the
extra ``plot`` (matplotlib).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.plot import build_parser
from ..studies import plots


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: plots.run(args))


if __name__ == "__main__":
    sys.exit(main())
