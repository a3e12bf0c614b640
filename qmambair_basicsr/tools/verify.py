"""Verify artifacts against the fake-quantized network they were exported from, on real images.

python -m qmambair_basicsr.tools.verify -opt options/test_QMambaIR_lightSRx2_w4a4.yml --checkpoint net_g_latest.pth \\
    --artifact net.safetensors --artifact net_frozen.onnx --artifact net_dynamic.onnx \\
    --images datasets/Set5/LR_bicubic/X2 --truth datasets/Set5/HR --output verify.json

Compared are: the integer codes of every quantized parameter; the codes of every quantized activation on one image; the
outputs (PSNR before rounding, against the network with the same DLS mode, on the same tiles). With --truth also the
PSNR against ground truth of each, and of the full-precision network when --fp-checkpoint is given. What equal codes
mean in detail is in artifacts/onnx/codes.py.

With --backend integer a packed checkpoint runs on the native kernels (runtime/), and its codes are compared in three ways:
every code with that of the value it was made of; with those of fake quantization over the whole network; and those of the
lowered network with the network's in FP64, where all must be equal, which stands for the FP64 file below.

A deep network of few bits magnifies the last bit of a float32: one code that falls the other way turns others behind it,
and --min-psnr is out of reach of any float32 arithmetic but its own. Give the FP64 file (tools.export --onnx-fp64) as well:
there all codes of the whole network must be equal. When they are, an FP32 (FP16) file is held to what the network itself
makes of noise as small as its rounding: 1e-7 (5e-4) of the largest value, at the image and at every quantizer.

With --levels no artifact is compared: on the images, every quantized site of --checkpoint (any that loads) may use at most
2^bits distinct values on each of its grids, counted behind its quantizer.

    python -m qmambair_basicsr.tools.verify --levels -opt OPTIONS.yml --checkpoint FILE.pth --images FOLDER

Exit status: 0 verified, 1 not, 2 wrong arguments or files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..artifacts import levels, verify
from ..cli import run_tool
from ..command_lines.verify import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.levels and not args.artifact:
        parser.error("give --artifact, or --levels with --checkpoint")
    return run_tool(lambda: (levels if args.levels else verify).run(args))


if __name__ == "__main__":
    sys.exit(main())
