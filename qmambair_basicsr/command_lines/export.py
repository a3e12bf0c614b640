"""The arguments of ``tools.export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add, positive
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.export")
    add(parser, "-opt", "its network_g must be quantized; not needed with a packed checkpoint")
    add(parser, "--checkpoint", "or a packed one (.safetensors)", required=True)
    add(parser, "--param-key", default="params")
    parser.add_argument("--packed", type=Path, metavar="FILE", help="write a packed checkpoint (.safetensors)")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="write an ONNX file")
    parser.add_argument(
        "--onnx-fp64",
        type=Path,
        metavar="FILE",
        help="write the same graph in FP64: tools.verify proves by it what rounding hides",
    )
    parser.add_argument(
        "--dls", choices=("frozen", "dynamic"), default="frozen", help="DLS grids: constants, or computed"
    )
    add(parser, "--calibration", "for --dls frozen, of the network's input size")
    add(parser, "--count", "of --calibration", default=16)
    add(parser, "--height", default=256)
    add(parser, "--width", default=256)
    parser.add_argument("--dynamic", action="store_true", help="leave height and width open")
    parser.add_argument(
        "--scan", choices=("onnx", "plugin"), default="onnx", help="standard operators, or TensorRT plugin"
    )
    parser.add_argument(
        "--scan-chunk", type=positive, default=16, metavar="N", help="pixels per iteration: 16 onnxruntime, 64 TensorRT"
    )
    parser.add_argument(
        "--scan-table", action="store_true", help="--scan plugin: look decays up where delta has a small constant grid"
    )
    parser.add_argument(
        "--fp16", action="store_true", help="compute in FP16 what is not quantized; for TensorRT 11 (scan stays FP32)"
    )
    return parser
