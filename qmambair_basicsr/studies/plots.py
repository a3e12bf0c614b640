"""The figures of ``tools.plot``: a function for each of its subcommands."""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from tqdm import tqdm

from ..data.image_files import match_channels, read_image
from ..files import write_bytes
from ..layers.info import network_info
from .plot_data import (
    PlotError,
    activation_samples,
    image_batches,
    images_of,
    open_network,
    parameter_samples,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130
_CLEAN = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}


def save(figure: Figure, out: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Write a figure in each format; the same figure gives the same bytes."""
    written = []
    for suffix in formats:
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=DPI, metadata=_CLEAN[suffix])
        written.append(out / f"{name}.{suffix}")
        write_bytes(written[-1], content.getvalue())
    return written


def _save_pages(pages: Sequence[Figure], args: argparse.Namespace, name: str) -> list[Path]:
    numbers = [""] if len(pages) == 1 else [f"_{i}" for i in range(1, len(pages) + 1)]
    return [
        path
        for page, number in zip(pages, numbers, strict=True)
        for path in save(page, args.out, f"{name}{number}", args.formats)
    ]


def histograms(args: argparse.Namespace) -> list[Path]:
    """Figures of activations and weights before and after quantization."""
    from .plot_sites import histogram_pages

    net, opt = open_network(args.opt, args.checkpoint, args.param_key)
    written = []
    if args.what != "weights":
        images = image_batches(args.images, network_info(net).channels, args.count, args.middle)
        sites = activation_samples(net, images, args.sites, args.samples, args.seed)
        written += _save_pages(histogram_pages(sites, f"{opt['name']}: activations"), args, "activations")
    if args.what != "activations":
        sites = parameter_samples(net, args.sites, args.samples, args.seed)
        title = f"{opt['name']}: weights and parameters of the scan"
        written += _save_pages(histogram_pages(sites, title), args, "weights")
    return written


def ranges(args: argparse.Namespace) -> list[Path]:
    """Figure of the ranges that the DLS grids cover."""
    from .plot_sites import range_figure

    net, opt = open_network(args.opt, args.checkpoint, args.param_key)
    images = image_batches(args.images, network_info(net).channels, args.count, args.middle)
    patterns = args.sites or ["*"]
    sites = activation_samples(net, images, patterns, args.samples, args.seed)
    return save(range_figure(sites, f"{opt['name']}: range of DLS"), args.out, "ranges", args.formats)


def thresholds(args: argparse.Namespace) -> list[Path]:
    """Figures of the thresholds of RFA: all of them as a map, some as input-output curves."""
    from .plot_sites import staircase_pages, threshold_map

    net, opt = open_network(args.opt, args.checkpoint, args.param_key)
    title = f"{opt['name']}: thresholds of RFA"
    written = save(threshold_map(net, title), args.out, "thresholds", args.formats)
    return written + _save_pages(staircase_pages(net, args.sites, title), args, "staircases")


def tradeoff(args: argparse.Namespace) -> list[Path]:
    """Figure of a metric against bits or size."""
    from .plot_results import read_benchmark, tradeoff_figure

    figure = tradeoff_figure(read_benchmark(args.tables), args.metric, args.against, args.sets)
    return save(figure, args.out, f"{args.metric}_against_{args.against}", args.formats)


def crops(args: argparse.Namespace) -> list[Path]:
    """Figures of a detail of each chosen image, restored by each network."""
    from .plot_results import (
        Restored,
        bicubic,
        busiest_box,
        check_box,
        crop_figure,
        file_for,
        input_of,
        restore,
    )

    for option in ("checkpoint", "label"):
        given = getattr(args, option)
        if given and len(given) != len(args.opt):
            raise PlotError(f"--{option}: {len(given)} given for {len(args.opt)} option files; give one for each")
    checkpoints = args.checkpoint or [None] * len(args.opt)
    networks = [
        open_network(file, weights, args.param_key) for file, weights in zip(args.opt, checkpoints, strict=True)
    ]
    labels = args.label or [opt["name"] for _, opt in networks]
    scales = {opt.get("scale", 1) for _, opt in networks}
    if len(scales) > 1:
        raise PlotError(f"-opt: the files have the scales {', '.join(map(str, sorted(scales)))}; compare one at a time")
    scale = scales.pop()
    protocol = next(iter(networks[0][1]["val"]["metrics"].values()))
    border, y_channel = protocol.get("crop_border", 0), protocol.get("test_y_channel", False)
    written = []
    for path in tqdm(_chosen_images(args), desc="images", disable=None):
        truth = match_channels(read_image(path), 3)
        truth = truth[: truth.shape[0] // scale * scale, : truth.shape[1] // scale * scale]
        low = input_of(truth, path, args.images, scale)
        columns = [Restored("input" if scale == 1 else "bicubic", bicubic(low, scale))]
        for (net, _), label in zip(networks, labels, strict=True):
            columns.append(Restored(label, restore(net, low, network_info(net).channels)))
        for entry in args.result:
            label, _, folder = entry.partition("=")
            if not folder:
                raise PlotError(f"--result: {entry!r} is not LABEL=FOLDER")
            found = file_for(path.stem, Path(folder), "--result", (f"x{scale}",))
            columns.append(Restored(label, match_channels(read_image(found), 3)))
        box = check_box(args.box, truth.shape, path.name) if args.box else busiest_box(truth, args.box_side, border)
        figure = crop_figure(truth, columns, box, path.stem, border, y_channel)
        written += save(figure, args.out, f"crops_{path.stem}", args.formats)
    return written


def _chosen_images(args: argparse.Namespace) -> list[Path]:
    files = images_of(args.truth)
    for stem, number in Counter(file.stem for file in files).items():
        if number > 1:
            raise PlotError(f"--truth: {args.truth} has {number} images called {stem}; rename all but one")
    if not args.names:
        return files[: args.count]
    by_stem = {file.stem: file for file in files}
    for name in args.names:
        if name not in by_stem:
            raise PlotError(f"--names: {args.truth} has no image called {name}; it has {', '.join(list(by_stem)[:10])}")
    return [by_stem[name] for name in args.names]


_COMMANDS = {command.__name__: command for command in (histograms, ranges, thresholds, tradeoff, crops)}


def run(args: argparse.Namespace) -> None:
    """Draw what ``tools.plot`` was asked for, and say which files were written.

    Raises:
        PlotError: matplotlib is missing, or something cannot be drawn.
    """
    if find_spec("matplotlib") is None:
        raise PlotError("plots need matplotlib; install it with: pip install 'qmambair_basicsr[plot]'")
    console = Console()
    for path in _COMMANDS[args.command](args):
        console.print(f"{path} ({path.stat().st_size / 1000:,.0f} kB)", highlight=False, soft_wrap=True)
