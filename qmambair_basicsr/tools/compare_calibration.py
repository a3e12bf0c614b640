"""Compare quantizer settings after calibration alone, without training, on the network of an option file.

python -m qmambair_basicsr.tools.compare_calibration -opt options/train_QMambaIR_tinySRx2_w4a4.yml \\
    --truth datasets/Set5/HR --calibration datasets/BSDS400T91/HR --bits 4 2

Images of both folders are of high resolution: each is cut to its middle and degraded with MATLAB's bicubic kernel. Each
setting is calibrated afresh, then every image is restored alone and once more in one batch with the others. Printed:
mean PSNR (Y, border of ``scale`` pixels cut) of both, and the largest change of an output value, in 1/255, that the
company of other images causes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.compare_calibration import build_parser
from ..studies import calibration_study


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: calibration_study.run(args))


if __name__ == "__main__":
    sys.exit(main())
