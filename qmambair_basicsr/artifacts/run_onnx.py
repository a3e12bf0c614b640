"""Restoring images with onnxruntime, and timing networks in turns; ``tools.run_onnx`` is its command."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from ..data.image_files import write_image
from ..files import replaced
from ..inference.image_sets import Sample, load_samples, mean, psnr_of, to_image
from ..inference.networks import network_of
from ..inference.tiling import middle, pad_to
from .reports import write_report

SCHEMA_VERSION = 1


def restore_all(network, samples: Sequence[Sample], args: argparse.Namespace, console: Console) -> dict:
    """Restore the images with a progress bar; returns PSNR and seconds of each, and the mean PSNR."""
    from .restoring import restore

    scale = int(network.facts["scale"])
    crop = args.crop if args.crop is not None else (scale if scale > 1 else 0)
    on_y = (args.channel or ("y" if scale > 1 else "rgb")) == "y"
    rows = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        for sample in progress.track(samples, description=network.path.name):
            started = time.perf_counter()
            result = restore(network, sample.image, network.size, network.multiple, args.overlap)
            seconds = time.perf_counter() - started
            _require_finite(result, network, sample)
            psnr = None if sample.truth is None else psnr_of(result, sample.truth, crop, on_y)
            rows.append({"image": sample.name, "psnr": psnr, "seconds": round(seconds, 4)})
            if args.save:
                write_image(args.save / f"{sample.name}.png", to_image(result))
    known = [row["psnr"] for row in rows if row["psnr"] is not None]
    return {
        "model": network.path.name,
        "tiles": list(network.size) if network.size else None,
        "protocol": {"channel": "y" if on_y else "rgb", "crop": crop} if known else None,
        "images": rows,
        "psnr": mean(known),
    }


def _require_finite(result: Tensor, network, sample: Sample) -> None:
    if not bool(torch.isfinite(result).all()):
        raise ValueError(f"{network.path} gives NaN or infinity for {sample.name}: nothing is written for it")


def time_in_turns(networks: dict[str, Callable[[Tensor], object]], x: Tensor, rounds: int) -> list[dict]:
    """Median and extremes in ms of every network on one input, and the ratio of its median to the first's.

    Each round runs every network once, each time starting with another, after one untimed run of each.
    """
    names = list(networks)
    for name in names:
        networks[name](x)
    spent: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            started = time.perf_counter()
            networks[name](x)
            spent[name].append(1000 * (time.perf_counter() - started))
    first = statistics.median(spent[names[0]])
    return [
        {
            "name": name,
            "median_ms": round(statistics.median(ms), 3),
            "min_ms": round(min(ms), 3),
            "max_ms": round(max(ms), 3),
            "ratio": round(statistics.median(ms) / first, 4),
        }
        for name, ms in spent.items()
    ]


def measure(args: argparse.Namespace, console: Console) -> dict:
    """Restore and time; the report document. ``args`` are those of ``tools.run_onnx``.

    Raises:
        ValueError: arguments or files that do not fit together.
    """
    from .onnx.runtime import OnnxNetwork

    for name in ("images", "truth"):
        folder = getattr(args, name)
        if args.save and folder and args.save.resolve() == folder.resolve():
            raise ValueError(f"--save {args.save} is the folder of --{name}, whose images would be overwritten")
    if args.checkpoint and not args.rounds:
        raise ValueError("--checkpoint is for timing: give --rounds as well")
    threads = args.threads or int(os.environ.get("OMP_NUM_THREADS", "0"))
    if threads:
        torch.set_num_threads(threads)
    models = [OnnxNetwork(path, threads) for path in args.model]
    first = models[0]
    samples = load_samples(args.images, args.truth, first.channels, int(first.facts["scale"]), args.count)
    document = {"schema_version": SCHEMA_VERSION, "restored": restore_all(first, samples, args, console)}
    if not (args.rounds or args.save_reference):
        return document
    height, width = next((m.size for m in models if m.size), (args.height, args.width))
    for model in models:
        if model.channels != first.channels or model.size not in (None, (height, width)):
            raise ValueError(f"{model.path} takes another input than {first.path}: only the same work can be compared")
        if height % model.multiple or width % model.multiple:
            raise ValueError(f"--height and --width must be multiples of {model.multiple} for {model.path}")
    image = samples[0].image
    x = middle(pad_to(image, max(height, image.shape[2]), max(width, image.shape[3])), height, width)
    if args.save_reference:
        target = args.save_reference
        if target.suffix != ".npz":
            raise ValueError(f"--save-reference {target}: the name must end in .npz")
        output = first(x)
        _require_finite(output, first, samples[0])
        with replaced(target) as part, open(part, "wb") as file:
            np.savez(file, input=x.numpy(), output=output.numpy())
    if args.rounds:
        contenders: dict[str, Callable[[Tensor], object]] = {str(m.path): m for m in models}
        if args.checkpoint:
            net = network_of(args.opt, args.checkpoint, args.param_key)

            def in_torch(image: Tensor) -> Tensor:
                with torch.no_grad():
                    return net(image)

            contenders[f"PyTorch, {args.checkpoint}"] = in_torch
        document["timing"] = {
            "input": list(x.shape),
            "threads": threads or None,
            "rounds": args.rounds,
            "rows": time_in_turns(contenders, x, args.rounds),
        }
    return document


def markdown(document: dict) -> str:
    """The report as people read it."""
    restored = document["restored"]
    tiles = "x".join(map(str, restored["tiles"])) if restored["tiles"] else "whole image"
    lines = [f"# {restored['model']} ({tiles})", "", "| image | PSNR dB | seconds |", "|---|---|---|"]
    for row in restored["images"]:
        lines.append(
            f"| {row['image']} | {'-' if row['psnr'] is None else format(row['psnr'], '.2f')} | {row['seconds']:.2f} |"
        )
    if restored["psnr"] is not None:
        protocol = restored["protocol"]
        lines += [
            "",
            f"Mean PSNR {restored['psnr']:.3f} dB ({protocol['channel'].upper()}, border {protocol['crop']}).",
        ]
    if "timing" in document:
        timing = document["timing"]
        lines += [
            "",
            f"Input {'x'.join(map(str, timing['input']))}, {timing['threads'] or 'all'} threads, {timing['rounds']} rounds in turns.",
            "",
            "| network | median ms | min | max | of the first |",
            "|---|---|---|---|---|",
        ]
        for row in timing["rows"]:
            lines.append(
                f"| {row['name']} | {row['median_ms']:.1f} | {row['min_ms']:.1f} | {row['max_ms']:.1f} | {row['ratio']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> None:
    """Restore and time, print the report and write it where asked."""
    document = measure(args, Console(stderr=True))
    write_report(document, markdown(document), args.output)
