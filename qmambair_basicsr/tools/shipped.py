"""Make the networks in ``assets`` again: train, quantize, pack, test.

    python -m qmambair_basicsr.tools.shipped --networks denoise [--dry-run] [--table] [--out shipped]

Runs this repository's own commands in the working folder, whose ``datasets`` must be prepared
(``qmambair_basicsr/assets/README.md`` says how): full-precision training (of the network it starts from, too),
quantization-aware training, and the packed file ``OUT/NAME.safetensors``. What is there already is not made again, an
interrupted training goes on. ``--table`` restores every test set of the task by the full-precision network and by the file
that ships, and prints PSNR / SSIM beside those of the inputs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.shipped import build_parser
from ..studies import shipped_training


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_tool(lambda: shipped_training.run(args))


if __name__ == "__main__":
    sys.exit(main())
