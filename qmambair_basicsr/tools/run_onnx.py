"""Run exported ONNX files on a folder of images with onnxruntime, and compare their speed.

python -m qmambair_basicsr.tools.run_onnx --model net_int8.onnx --images datasets/Set5/LR_bicubic/X2 \\
    --truth datasets/Set5/HR --save results/int8
python -m qmambair_basicsr.tools.run_onnx --model net_int8.onnx --model net_fp32.onnx -opt FILE --checkpoint net.pth \\
    --images FOLDER --rounds 10 --save-reference refs/baby.npz

The first --model restores the images; files of fixed size work in overlapping tiles. With --rounds every --model, and
the PyTorch network of --checkpoint, is timed on one input in turns. --save-reference writes that input and the first
model's output for the accuracy check of deploy/benchmark_jetson.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..artifacts import run_onnx
from ..cli import run_tool
from ..command_lines.run_onnx import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: run_onnx.run(args))


if __name__ == "__main__":
    sys.exit(main())
