"""A quantized checkpoint without training; ``tools.calibrate`` is the command."""

from __future__ import annotations

import argparse

import torch
from basicsr.archs import build_network
from rich.console import Console
from rich.progress import track

from ..calibration import calibrate
from ..checkpoints import write_file
from ..inference.image_sets import middles
from ..inference.networks import load_full_precision
from ..layers.declared import ordinary_state
from ..layers.info import network_info
from ..layers.sites import quantizers_of
from ..recipes.option_files import read_options


def run(args: argparse.Namespace, console: Console) -> None:
    """Calibrate what ``tools.calibrate`` was asked for and write the checkpoint.

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
    write_file({"params": ordinary_state(net)}, args.output)
    source = args.checkpoint or f"random weights (seed {args.seed})"
    console.print(
        f"{args.output}: {len(quantizers)} quantizers of {type(net).__name__}, {source}, {len(images)} images",
        highlight=False,
        soft_wrap=True,
    )
