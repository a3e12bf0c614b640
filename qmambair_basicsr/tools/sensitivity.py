"""Show what quantizing each site of a network costs, and share bits out accordingly.

python -m qmambair_basicsr.tools.sensitivity -opt options/train_QMambaIR_lightSRx2_w4a4.yml \\
    --checkpoint MambaIR_lightSRx2.pth --images datasets/Set5/LR_bicubic/X2 --csv > sensitivity.csv
python -m qmambair_basicsr.tools.sensitivity -opt FILE --checkpoint FILE --images FOLDER --average 3 --output mixed.yml

A score estimates, from gradients, the squared change of the output (over its variance) that quantizing one site alone
causes; --direct measures it. --average writes an option file whose overrides give every site its bits, and says what average came out: the last
bits may be too few for the next width of any site. Each site is rated at those widths that its quantizer can have. Token routing and states of a scan are not rated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.sensitivity import build_parser
from ..studies import sensitivity


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)

    def tool() -> None:
        sys.stdout.write(sensitivity.run(args))

    return run_tool(tool)


if __name__ == "__main__":
    sys.exit(main())
