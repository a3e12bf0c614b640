"""Quantizer settings compared after calibration alone: PSNR, and how much other images of a batch change a result."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.metrics import calculate_psnr
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ..calibration import calibrate
from ..data.image_files import list_images, match_channels, read_image
from ..data.matlab_resize import bicubic_downscale
from ..inference.image_sets import to_tensor
from ..inference.networks import load_full_precision
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
        raise ValueError(
            f"{folder}: no image with both sides of at least {size} pixels; give another folder or --middle"
        )
    return torch.cat(low), torch.cat(high)


def mean_psnr(outputs: torch.Tensor, targets: torch.Tensor, border: int) -> float:
    """Mean PSNR on the Y channel of (N, 3, H, W) RGB images in [0, 1], rounded to 8 bits as test images are."""
    pairs = zip(_images(outputs), _images(targets), strict=True)
    return float(np.mean([calculate_psnr(a, b, border, test_y_channel=True) for a, b in pairs]))


def _images(batch: torch.Tensor) -> Iterable[np.ndarray]:
    for image in (batch.clamp(0, 1) * 255).round():
        yield image.permute(1, 2, 0).numpy()[:, :, ::-1]


def network_with(network: dict, weights: str | Path, quant: dict, param_key: str = "params") -> torch.nn.Module:
    """A network with full-precision weights and fresh quantizers, for evaluation; ``quant``: its ``quant`` block."""
    return load_full_precision(build_network({**network, "quant": quant}), weights, param_key).eval()


@torch.no_grad()
def restore_alone(net: torch.nn.Module, low: torch.Tensor) -> torch.Tensor:
    """Outputs for images that go through the network one by one; ``low``: (N, C, H, W)."""
    return torch.cat([net(image[None]) for image in low])


def compare(
    network: dict,
    weights: str | Path,
    calibration: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    bits: int,
    param_key: str = "params",
):
    """Measure every entry of ``SETTINGS`` at one bit-width.

    Yields:
        ``(setting, PSNR alone, PSNR in one batch, largest change of a value in 1/255)``.
    """
    scale = network["upscale"]
    for name, options in SETTINGS.items():
        kinds = zip(("weight", "act", "scan"), ("RFA", "LSQOffset", "DLS"), options, strict=True)
        quant = {site: {"type": kind, "bits": bits, **chosen} for site, kind, chosen in kinds}
        net = network_with(network, weights, quant, param_key)
        calibrate(net, calibration.split(4))
        alone = restore_alone(net, low)
        with torch.no_grad():
            together = net(low)
        change = 255 * (alone - together).abs().max().item()
        yield name, mean_psnr(alone, high, scale), mean_psnr(together, high, scale), change


def run(args: argparse.Namespace) -> None:
    """Measure what ``tools.compare_calibration`` was asked for and print it.

    Raises:
        ValueError: options or folders that do not fit.
        CheckpointError: weights that do not fit.
    """
    opt = read_options(args.opt, ("network_g",), quantized=True)
    network = opt["network_g"]
    weights = args.checkpoint or (opt.get("path") or {}).get("pretrain_network_g")
    if weights is None:
        raise ValueError(f"{args.opt}: path has no pretrain_network_g; give --checkpoint FILE")
    low, high = load_pairs(args.truth, args.middle, network["upscale"], 100)
    calibration, _ = load_pairs(args.calibration, args.middle, network["upscale"], args.count)

    header = ("bits", "setting", "PSNR alone", "PSNR in a batch", "largest change")
    table, console = Table(*header), Console()
    if args.form == "markdown":
        for line in (header, ["---", "---", "---:", "---:", "---:"]):
            console.print(f"| {' | '.join(line)} |", highlight=False, soft_wrap=True)
    full = mean_psnr(restore_alone(network_with(network, weights, {}, args.param_key), low), high, network["upscale"])
    baseline = ("32", "full precision", f"{full:.2f}", "", "")
    table.add_row(*baseline)
    if args.form == "markdown":
        console.print(f"| {' | '.join(baseline)} |", highlight=False, soft_wrap=True)
    for bits in args.bits:
        results = compare(network, weights, calibration, low, high, bits, args.param_key)
        for name, alone, together, change in tqdm(results, total=len(SETTINGS), desc=f"{bits} bits"):
            row = (str(bits), name, f"{alone:.2f}", f"{together:.2f}", f"{change:.2f}")
            table.add_row(*row)
            if args.form == "markdown":
                console.print(f"| {' | '.join(row)} |", highlight=False, soft_wrap=True)
    if args.form != "markdown":
        console.print(table)
