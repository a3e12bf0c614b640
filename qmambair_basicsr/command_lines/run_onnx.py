"""The arguments of ``tools.run_onnx``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add, natural
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.run_onnx")
    add(parser, "--model", "ONNX files; more are timed beside the first", required=True, repeated=True)
    add(parser, "--images", required=True)
    add(parser, "--truth", "for PSNR")
    add(parser, "--count", "all without it")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write the restored images")
    add(parser, "--overlap", "for files of fixed size", default=16)
    add(parser, "--crop", "default: the scale, 0 for x1")
    add(parser, "--channel", "default: y for scales above 1")
    parser.add_argument("--rounds", type=natural, default=0, help="timed runs of each network (default: none)")
    add(parser, "--height", "for timing and reference, where sides are open", default=64)
    add(parser, "--width", "for timing and reference, where sides are open", default=64)
    add(parser, "-opt", "of the PyTorch network to time")
    add(parser, "--checkpoint", "or a packed one (.safetensors), of the PyTorch network to time")
    add(parser, "--param-key", default="params")
    add(parser, "--threads", "of onnxruntime and PyTorch; default: OMP_NUM_THREADS, or all")
    parser.add_argument(
        "--save-reference", type=Path, metavar="FILE.npz", help="arrays `input` and `output` of one run"
    )
    add(parser, "--output", "the report as JSON, and as Markdown beside it")
    return parser
