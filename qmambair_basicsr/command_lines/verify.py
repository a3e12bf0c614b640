"""The arguments of ``tools.verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.verify")
    add(parser, "-opt", "its network_g must be quantized; not needed with a packed checkpoint")
    add(
        parser,
        "--checkpoint",
        "or a packed one (.safetensors); with --backend integer that of the artifact itself without it",
    )
    add(parser, "--param-key", default="params")
    parser.add_argument("--artifact", action="append", default=[], help=".safetensors or .onnx, may be repeated")
    parser.add_argument(
        "--levels",
        action="store_true",
        help="count the distinct values at every quantized site of --checkpoint instead: at most 2^bits on each grid",
    )
    add(
        parser,
        "--backend",
        "of a packed checkpoint: fake quantization, or native kernels on its integer codes",
        default="float",
        choices=("float", "integer"),
    )
    add(parser, "--images", required=True)
    add(parser, "--truth")
    add(parser, "--count", "all without it")
    add(parser, "--middle", "all without it")
    parser.add_argument("--fp-opt", type=Path, metavar="FILE", help="option file of the full-precision network")
    parser.add_argument("--fp-checkpoint", type=Path, metavar="FILE", help="weights of the full-precision network")
    parser.add_argument("--min-psnr", type=float, default=50.0, help="least PSNR between outputs, in dB (default: 50)")
    add(parser, "--overlap", "for files of fixed size", default=16)
    add(parser, "--crop", "default: the scale, 0 for x1")
    add(parser, "--channel", "default: y for scales above 1")
    add(parser, "--output", "the report as JSON, and as Markdown beside it")
    return parser
