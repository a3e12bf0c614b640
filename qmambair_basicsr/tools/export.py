"""Export a quantized network: a packed checkpoint, an ONNX file, or both.

python -m qmambair_basicsr.tools.export -opt options/test_QMambaIR_lightSRx2_w4a4.yml --checkpoint net_g_latest.pth \\
    --packed light_w4a4.safetensors
python -m qmambair_basicsr.tools.export -opt FILE --checkpoint FILE --onnx light_w4a4.onnx --dls frozen \\
    --calibration datasets/BSDS400T91/LR_bicubic/X2 --height 256 --width 256 --onnx-fp64 light_w4a4_fp64.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from ..artifacts import export
from ..cli import run_tool
from ..command_lines.export import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: export.run(args, Console()))


if __name__ == "__main__":
    sys.exit(main())
