"""Make option files: any combination of network, task, bits and method that goes together.

python -m qmambair_basicsr.tools.make_options train_QMambaIR_ColorDN25_w4a4   # writes options/train_QMambaIR_ColorDN25_w4a4.yml
python -m qmambair_basicsr.tools.make_options --list             # which names there are
python -m qmambair_basicsr.tools.make_options                    # writes the files that are committed
python -m qmambair_basicsr.tools.make_options --check            # exit 1 when a file differs from the table

Names: {train|test}_{network}_{task} in full precision, {train|test}_Q{network}_{task}_w{W}a{A}[_{method}] for W bits of
weights and A bits of activations. Without a method it is Q-MambaIR; the tables are in recipes/option_table.py. Post-training
methods: ptq_Q{network}_{task}_w{W}a{A}_{method} quantizes, test_Q... of the same method tests (ptq/README.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.make_options import build_parser
from ..recipes import make_options


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: make_options.run(args))


if __name__ == "__main__":
    sys.exit(main())
