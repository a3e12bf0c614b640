"""Count parameters, multiply-accumulates and bit operations of the network of an option file, layer by layer.

python -m qmambair_basicsr.tools.complexity -opt options/test_QMambaIR_lightSRx2_w4a4.yml
python -m qmambair_basicsr.tools.complexity -opt FILE --height 320 --width 320 --full   # other input, every module
python -m qmambair_basicsr.tools.complexity -opt FILE --csv > layers.csv         # or --markdown, --json
python -m qmambair_basicsr.tools.complexity --paper-accounting                   # Table 4 of Q-MambaIR, and why it differs

Default of ``--width`` and ``--height``: the input of a 1280x720 result, as super-resolution papers count (640x360 for x2,
426x240 for x3, 320x180 for x4, 1280x720 for restoration at the same size).
``studies/complexity_count.py`` says what is counted and how.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.complexity import build_parser
from ..studies import complexity


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)

    def tool() -> None:
        sys.stdout.write(complexity.run(args))

    return run_tool(tool)


if __name__ == "__main__":
    sys.exit(main())
