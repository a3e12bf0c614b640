"""Print which quantizer sits where in the network of an option file.

python -m qmambair_basicsr.tools.placement -opt options/train_QMambaIR_SRx2_w2a2.yml             # table
python -m qmambair_basicsr.tools.placement -opt FILE --full                                      # every module on a row
python -m qmambair_basicsr.tools.placement -opt FILE --csv > placement.csv                       # or --markdown
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.placement import build_parser
from ..studies import placement_table


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)

    def tool() -> None:
        sys.stdout.write(placement_table.run(args))

    return run_tool(tool)


if __name__ == "__main__":
    sys.exit(main())
