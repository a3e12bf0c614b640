"""Compare quantizer settings after calibration alone, without training, on the network of an option file.

python -m qmambair_basicsr.tools.compare_calibration -opt options/train_QMambaIR_tinySRx2_w4a4.yml \\
    --test datasets/Set5/HR --calibration datasets/BSDS400T91/HR --bits 4 2

Every image is cut to its centre and degraded with MATLAB's bicubic kernel. Each setting is calibrated afresh, then
every image is restored alone and once more in one batch with the others. Printed: mean PSNR (Y, border of ``scale``
pixels cut) of both, and the largest change of an output value, in 1/255, that the company of other images causes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.metrics import calculate_psnr
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import qmambair_basicsr  # noqa: F401  (registers the networks)

from ..cli import run_tool
from ..data.image_files import list_images, match_channels, read_image
from ..data.matlab_resize import bicubic_downscale
from ..inference.image_sets import to_tensor
from ..inference.networks import load_full_precision
from ..layers.calibrate import calibrate
from ..recipes.option_files import read_options

OFFICIAL = {"mode": "official"}
SETTINGS: dict[str, tuple[dict, dict, dict]] = {  # name: options of weight (RFA), act (LSQOffset), scan (DLS)
    "stable": ({}, {}, {}),
    "stable, statistics per tensor": ({}, {}, {"stats": "tensor"}),
    "stable, no search": ({"search": "none"}, {"search": "none"}, {"init": {"search": "none"}}),
    "official": (OFFICIAL, OFFICIAL, OFFICIAL),
    "official, statistics per sample": (OFFICIAL, OFFICIAL, {**OFFICIAL, "stats": "sample"}),
}


def load_pairs(folder: Path, size: int, scale: int, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres of a folder's images and their degraded versions.

    Args:
        folder: images.
        size: side of the high-resolution cut, a multiple of ``scale``; smaller images are left out.
        scale: factor of the degradation.
        limit: at most so many images, in the order of their names.

    Returns:
        (N, 3, size / scale, size / scale) and (N, 3, size, size), RGB in [0, 1].

    Raises:
        ValueError: no image of that size in the folder.
    """
    low, high = [], []
    for path in list_images(folder):
        image = match_channels(read_image(path), 3)
        if min(image.shape[:2]) < size or len(high) == limit:
            continue
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        cut = image[top : top + size, left : left + size]
        for images, array in ((high, cut), (low, bicubic_downscale(np.ascontiguousarray(cut), scale))):
            images.append(to_tensor(array))
    if not high:
        raise ValueError(f"{folder}: no image with both sides of at least {size} pixels; give another folder or --crop")
    return torch.cat(low), torch.cat(high)


def mean_psnr(outputs: torch.Tensor, targets: torch.Tensor, border: int) -> float:
    """Mean PSNR on the Y channel of (N, 3, H, W) RGB images in [0, 1], rounded to 8 bits as test images are."""
    pairs = zip(_images(outputs), _images(targets), strict=True)
    return float(np.mean([calculate_psnr(a, b, border, test_y_channel=True) for a, b in pairs]))


def _images(batch: torch.Tensor) -> Iterable[np.ndarray]:
    for image in (batch.clamp(0, 1) * 255).round():
        yield image.permute(1, 2, 0).numpy()[:, :, ::-1]


def _network(network: dict, weights: str | Path, quant: dict) -> torch.nn.Module:
    """The network with full-precision weights and fresh quantizers, for evaluation."""
    return load_full_precision(build_network({**network, "quant": quant}), weights).eval()


@torch.no_grad()
def _alone(net: torch.nn.Module, low: torch.Tensor) -> torch.Tensor:
    return torch.cat([net(image[None]) for image in low])


def compare(
    network: dict, weights: str | Path, calibration: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int
):
    """Measure every entry of ``SETTINGS`` at one bit-width.

    Yields:
        ``(setting, PSNR alone, PSNR in one batch, largest change of a value in 1/255)``.
    """
    scale = network["upscale"]
    for name, options in SETTINGS.items():
        kinds = zip(("weight", "act", "scan"), ("RFA", "LSQOffset", "DLS"), options, strict=True)
        quant = {site: {"type": kind, "bits": bits, **chosen} for site, kind, chosen in kinds}
        net = _network(network, weights, quant)
        calibrate(net, calibration.split(4))
        alone = _alone(net, low)
        with torch.no_grad():
            together = net(low)
        change = 255 * (alone - together).abs().max().item()
        yield name, mean_psnr(alone, high, scale), mean_psnr(together, high, scale), change


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", type=Path, required=True, help="option file with a quantized network_g")
    parser.add_argument("--weights", type=Path, help="full-precision weights; default path: pretrain_network_g")
    parser.add_argument("--test", type=Path, required=True, help="folder of high-resolution test images")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of high-resolution images")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--crop", type=int, default=192, help="side of the high-resolution cuts")
    parser.add_argument("--images", type=int, default=16, help="calibration images")
    parser.add_argument("--markdown", action="store_true")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure what the command line asks for and print it.

    Raises:
        ValueError: options or folders that do not fit.
        CheckpointError: weights that do not fit.
    """
    opt = read_options(args.opt, ("network_g",), quantized=True)
    network = opt["network_g"]
    weights = args.weights or (opt.get("path") or {}).get("pretrain_network_g")
    if weights is None:
        raise ValueError(f"{args.opt}: path has no pretrain_network_g; give --weights FILE")
    low, high = load_pairs(args.test, args.crop, network["upscale"], 100)
    calibration, _ = load_pairs(args.calibration, args.crop, network["upscale"], args.images)

    header = ("bits", "setting", "PSNR alone", "PSNR in a batch", "largest change")
    table, console = Table(*header), Console()
    if args.markdown:
        for line in (header, ["---", "---", "---:", "---:", "---:"]):
            console.print(f"| {' | '.join(line)} |", highlight=False, soft_wrap=True)
    full = mean_psnr(_alone(_network(network, weights, {}), low), high, network["upscale"])
    baseline = ("32", "full precision", f"{full:.2f}", "", "")
    table.add_row(*baseline)
    if args.markdown:
        console.print(f"| {' | '.join(baseline)} |", highlight=False, soft_wrap=True)
    for bits in args.bits:
        results = compare(network, weights, calibration, low, high, bits)
        for name, alone, together, change in tqdm(results, total=len(SETTINGS), desc=f"{bits} bits"):
            row = (str(bits), name, f"{alone:.2f}", f"{together:.2f}", f"{change:.2f}")
            table.add_row(*row)
            if args.markdown:
                console.print(f"| {' | '.join(row)} |", highlight=False, soft_wrap=True)
    if not args.markdown:
        console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
