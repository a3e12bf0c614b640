"""Quantize a network without training: put its quantizers on the ranges that some images lead to.

python -m qmambair_basicsr.tools.calibrate -opt options/test_QMambaIRv2Light_lightSRx2_w4a4.yml \\
    --checkpoint mambairv2_lightSR_x2.pth --images datasets/BSDS400T91/LR_bicubic/X2 --output net_calibrated.pth

The result is what training of the quantized network starts from, and the baseline "calibration only". Without
--checkpoint the weights are random (--seed): enough to size, verify and time a network that nobody has trained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from ..artifacts import calibrate
from ..cli import run_tool
from ..command_lines.calibrate import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: calibrate.run(args, Console()))


if __name__ == "__main__":
    sys.exit(main())
