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

from ..calibration import calibrate
from ..checkpoints import write_file
from ..cli import run_tool
from ..command_lines.calibrate import build_parser
from ..inference.image_sets import middles
from ..inference.networks import load_full_precision
from ..layers.info import network_info
from ..layers.sites import quantizers_of
from ..recipes.option_files import read_options


def run(args: argparse.Namespace, console: Console) -> None:
    """Do what the command line asks.

    Raises:
        ValueError: the option file of a network that is not quantized, or images that do not fit it.
    """
    torch.manual_seed(args.seed)
    net = build_network(read_options(args.opt, ("network_g",), quantized=True)["network_g"]).eval()
    quantizers = quantizers_of(net)
    if args.checkpoint:
        load_full_precision(net, args.checkpoint, args.param_key)
    images = list(middles(args.images, network_info(net).channels, args.middle, args.middle, args.count))
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
