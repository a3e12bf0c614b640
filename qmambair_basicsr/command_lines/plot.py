"""The arguments of ``tools.plot``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add, positive
from . import for_command

SAMPLES = 100_000  # values kept of a site


def box(text: str) -> list[int]:
    """Left, top, width and height of a detail."""
    try:
        left, top, width, height = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H (whole numbers, pixels of the original)") from None
    return [left, top, width, height]


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.plot")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    shared = argparse.ArgumentParser(add_help=False)
    add(shared, "--out", default=Path("plots"))
    shared.add_argument("--formats", nargs="+", choices=("png", "pdf"), default=["png", "pdf"], help="default: both")

    network = argparse.ArgumentParser(add_help=False)
    add(network, "-opt", "a test file of a quantized network", required=True)
    add(network, "--checkpoint", "default: the option file's")
    add(network, "--param-key", default="params")
    network.add_argument("--sites", nargs="+", metavar="PATTERN", help="such as '*.self_attention.*'")

    sampling = argparse.ArgumentParser(add_help=False)
    add(sampling, "--images", required=True)
    add(sampling, "--middle", default=192)
    add(sampling, "--samples", default=SAMPLES)
    add(sampling, "--seed", "for the choice of values", default=0)

    def command(name, parents, text):
        return commands.add_parser(
            name, parents=[shared, *parents], help=text, description=f"{text}.", allow_abbrev=False
        )

    added = command(
        "histograms", (network, sampling), "Figures of activations and weights before and after quantization"
    )
    add(added, "--count", "a DLS grid differs between images", default=1)
    added.add_argument(
        "--what", choices=("both", "activations", "weights"), default="both", help="to show (default: both)"
    )
    added = command("ranges", (network, sampling), "Figure of the ranges that the DLS grids cover")
    add(added, "--count", default=4)
    command(
        "thresholds", (network,), "Figures of the thresholds of RFA: all of them as a map, some as input-output curves"
    )

    added = command("tradeoff", (), "Figure of a metric against bits or size")
    added.add_argument("--tables", type=Path, nargs="+", required=True, metavar="FILE", help="CSV of tools.benchmark")
    added.add_argument("--metric", default="psnr", help="column of the tables (default: psnr)")
    added.add_argument("--against", choices=("bits", "size"), default="size", help="axis (default: size)")
    add(added, "--sets", "default: all", nargs="+")

    added = command("crops", (), "Figures of a detail of each chosen image, restored by each network")
    add(added, "-opt", "test files, one for each network", required=True, nargs="+")
    add(added, "--checkpoint", "one for each option file", nargs="+")
    added.add_argument("--label", nargs="+", help="one for each option file")
    add(added, "--param-key", default="params")
    add(added, "--truth", required=True)
    add(added, "--images", "default: MATLAB's bicubic of --truth")
    added.add_argument("--result", nargs="+", default=[], metavar="LABEL=FOLDER", help="images restored elsewhere")
    added.add_argument("--names", nargs="+", help="images to show, without suffix; default: the first")
    add(added, "--count", "without --names", default=1)
    added.add_argument(
        "--box", type=box, metavar="X,Y,W,H", help="detail; default: the square with the strongest edges"
    )
    added.add_argument("--box-side", type=positive, default=64, help="side of that square")
    return parser
