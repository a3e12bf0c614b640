"""Quantize a network without training: put its quantizers on the ranges that some images lead to.

python -m qmambair_basicsr.tools.calibrate -opt options/test_QMambaIRv2Light_lightSRx2_w4a4.yml \\
    --checkpoint mambairv2_lightSR_x2.pth --images datasets/BSDS400T91/LR_bicubic/X2 --output net_calibrated.pth

The result is what training of the quantized network starts from, and the baseline "calibration only". Without
--checkpoint the weights are random (--seed): enough to size, verify and time a network that nobody has trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from basicsr.archs import build_network
from rich.console import Console
from rich.progress import track

import qmambair_basicsr  # noqa: F401  (registers the networks)

from ..archs.images import image_channels
from ..checkpoints import write_file
from ..cli import run_tool
from ..inference.image_sets import middles
from ..inference.networks import load_full_precision
from ..layers.calibrate import calibrate, quantizers_of
from ..recipes.option_files import read_options


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", required=True, help="option file with a quantized network_g")
    parser.add_argument("--checkpoint", help="full-precision weights (.pth); default: random ones")
    parser.add_argument("--param-key", default="params", help="params (default) or params_ema")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default 0)")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="inputs like those the network will see")
    parser.add_argument("--count", type=int, default=16, help="how many of them (default 16)")
    parser.add_argument("--side", type=int, default=128, help="pixels of their middle that are used (default 128)")
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write (.pth)")
    return parser


def run(args: argparse.Namespace, console: Console) -> None:
    """Do what the command line asks.

    Raises:
        ValueError: arguments that make no sense, or the option file of a network that is not quantized.
    """
    for name in ("count", "side"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    torch.manual_seed(args.seed)
    net = build_network(read_options(args.opt, ("network_g",), quantized=True)["network_g"]).eval()
    quantizers = quantizers_of(net)
    if args.checkpoint:
        load_full_precision(net, args.checkpoint, args.param_key)
    images = list(middles(args.images, image_channels(net), args.side, args.side, args.count))
    calibrate(net, track(images, "calibrate", console=console, transient=True))
    write_file({"params": net.state_dict()}, args.output)
    source = args.checkpoint or f"random weights (seed {args.seed})"
    console.print(
        f"{args.output}: {len(quantizers)} quantizers of {type(net).__name__}, {source}, {len(images)} images",
        highlight=False,
        soft_wrap=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: run(args, Console()))


if __name__ == "__main__":
    sys.exit(main())
