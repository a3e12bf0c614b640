"""Figures of results: PSNR against bits or size, and details of restored images side by side."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from basicsr.metrics import calculate_psnr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from ..data.image_files import match_channels, read_image
from ..data.matlab_resize import bicubic_downscale, imresize
from ..inference.image_sets import to_tensor
from ..inference.tiling import release_spans, run_tiled
from ..layers.info import size_multiple
from .benchmark_table import LOWER_IS_BETTER
from .plot_data import PlotError, images_of

_COLOURS = ("#d1495b", "#2a6f97", "#3a7d44", "#e09f3e", "#6d597a", "#1b998b", "#8d5a2b", "#555555")
_MARKERS = "osD^vP*X"
_NEEDED = ("model", "method", "w_bits", "a_bits", "kib", "dataset", "metric", "value")


# -- PSNR against bits or size ---------------------------------------------------------------------------------------


def read_benchmark(files: Sequence[Path]) -> list[dict[str, str]]:
    """Rows of the CSV tables that ``tools.benchmark`` writes.

    Raises:
        PlotError: A file is missing or is no such table.
    """
    rows = []
    for file in files:
        if not file.is_file():
            raise PlotError(f"--tables: there is no file {file}; python -m qmambair_basicsr.tools.benchmark writes it")
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise PlotError(
                    f"--tables: {file} lacks the columns {', '.join(missing)}; give the CSV of tools.benchmark"
                )
            rows += [{**row, "file": str(file)} for row in reader]
    return rows


def tradeoff_figure(
    rows: Sequence[dict[str, str]], metric: str, against: str, datasets: Sequence[str] | None
) -> Figure:
    """A metric against bits or size, one panel per test set, one line per method (Q-MambaIR, Figure 2).

    Args:
        rows: From :func:`read_benchmark`.
        metric: As in the column of that name.
        against: 'bits' (of the weights) or 'size' (KiB).
        datasets: Which sets; None = all, in the order of the rows.

    Raises:
        PlotError: No row has that metric, or one of the sets.
    """
    known = sorted({row["metric"] for row in rows})
    rows = [row for row in rows if row["metric"] == metric and (against == "bits" or row["kib"])]
    if not rows:
        raise PlotError(
            f"--metric: no row with {metric!r} and its {against}; the tables hold {', '.join(known) or 'nothing'}"
        )
    present = list(dict.fromkeys(row["dataset"] for row in rows))
    for name in datasets or ():
        if name not in present:
            raise PlotError(f"--sets: {name!r} is not in the tables; they hold {', '.join(present)}")
    chosen = list(datasets or present)
    labels = list(dict.fromkeys(_label(row) for row in rows if row["w_bits"] != "32"))
    styles = {label: (_COLOURS[i % 8], _MARKERS[i % 8]) for i, label in enumerate(labels)}
    figure = Figure(figsize=(3.6 * len(chosen), 3.6), layout="constrained")
    axes = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axis, dataset in zip(axes, chosen, strict=True):
        here = [row for row in rows if row["dataset"] == dataset]
        for label, (colour, marker) in styles.items():
            points = sorted((_place(row, against), float(row["value"])) for row in here
                            if _label(row) == label and row["w_bits"] != "32")  # fmt: skip
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=6, label=label)
        for row in (row for row in here if row["w_bits"] == "32"):
            axis.axhline(
                float(row["value"]),
                color="black",
                linestyle="--",
                linewidth=0.9,
                label=f"{row['model']}, full precision",
            )
        if against == "bits":
            ticks = sorted({_place(row, against) for row in here if row["w_bits"] != "32"})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_title(dataset, fontsize=10)
        axis.set_xlabel("bits of the weights" if against == "bits" else "size of the parameters (KiB)", fontsize=9)
        unit = " (dB)" if metric == "psnr" else ""
        lower = ", lower is better" if metric in LOWER_IS_BETTER else ""
        axis.set_ylabel(f"{metric.upper()}{unit}{lower}", fontsize=9)
        axis.grid(linewidth=0.3)
        axis.tick_params(labelsize=8)
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        entries.values(), entries, loc="outside lower center", ncols=min(len(entries), 4), frameon=False, fontsize=9
    )
    return figure


def _label(row: dict[str, str]) -> str:
    return f"{row['model']}, {row['method']}"


def _place(row: dict[str, str], against: str) -> float:
    return float(row["w_bits"] if against == "bits" else row["kib"])


# -- details side by side --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restored:
    """One column of the comparison: its label and the (H, W, 3) uint8 BGR image."""

    label: str
    image: np.ndarray


@torch.no_grad()
def restore(net: nn.Module, low: np.ndarray, channels: int) -> np.ndarray:
    """Restore an image, uint8 BGR to uint8 BGR, in the tiles of the published protocol."""
    x = to_tensor(match_channels(low, channels))
    y = run_tiled(net, x, release_spans, size_multiple(net))
    y = (y[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return match_channels(np.ascontiguousarray(y[..., ::-1]), 3)


def input_of(truth: np.ndarray, path: Path, folder: Path | None, scale: int) -> np.ndarray:
    """Input of the networks for an original: MATLAB's bicubic, or the file of the same name in ``folder``.

    Raises:
        PlotError: Scale 1 without a folder, or the folder lacks the file.
    """
    if folder is None:
        if scale == 1:
            raise PlotError("crops: the networks keep the image's size; give their inputs with --images FOLDER")
        return bicubic_downscale(truth, scale)
    return read_image(file_for(path.stem, folder, "--images", (f"x{scale}",)))


def file_for(stem: str, folder: Path, option: str, suffixes: Sequence[str] = ()) -> Path:
    """The image of a folder that belongs to the original called ``stem``: the same name, or one that begins with it.

    Raises:
        PlotError: None or several.
    """
    files = images_of(folder)
    exact = [file for file in files if file.stem in (stem, *(f"{stem}{suffix}" for suffix in suffixes))]
    if len(exact) > 1:
        names = " and ".join(file.name for file in exact)
        raise PlotError(f"{option}: {names} in {folder} could both belong to {stem!r}; rename or remove one")
    if exact:
        return exact[0]
    starting = [file for file in files if file.stem.startswith((f"{stem}_", *(f"{stem}{s}_" for s in suffixes)))]
    if len(starting) != 1:
        what = "several images" if starting else "no image"
        raise PlotError(
            f"{option}: {folder} has {what} for {stem!r}; it must hold one called {stem}.png or {stem}_*.png"
        )
    return starting[0]


def busiest_box(image: np.ndarray, side: int, border: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of the square with the largest mean gradient, ``border`` pixels off the edge."""
    grey = image.astype(np.float64).mean(axis=2)
    gradient = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    side = min(side, *(n - 2 * border - 1 for n in image.shape[:2]))
    total = np.pad(gradient, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    sums = sums[border : sums.shape[0] - border or None, border : sums.shape[1] - border or None]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(left) + border, int(top) + border, side, side


def check_box(box: Sequence[int], shape: Sequence[int], name: str) -> tuple[int, int, int, int]:
    """The box if it lies inside the image.

    Raises:
        PlotError: It does not.
    """
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1 or left + width > shape[1] or top + height > shape[0]:
        raise PlotError(
            f"--box {','.join(map(str, box))} is outside {name}, which has {shape[1]} x {shape[0]} pixels; give X,Y,W,H"
        )
    return left, top, width, height


def bicubic(low: np.ndarray, scale: int) -> np.ndarray:
    """An input enlarged by MATLAB's bicubic."""
    return imresize(match_channels(low, 3), scale)


def crop_figure(truth: np.ndarray, results: Sequence[Restored], box: tuple[int, int, int, int], title: str,
                crop_border: int, test_y_channel: bool) -> Figure:  # fmt: skip
    """The whole original with the box, then the box of every result, enlarged (Q-MambaIR, Figure 1).

    Args:
        truth: Original, (H, W, 3) uint8 BGR.
        results: Columns.
        box: Left, top, width and height, in pixels of the original.
        title: Of the figure.
        crop_border: Border in pixels that the PSNR of the whole image leaves out.
        test_y_channel: PSNR on Y instead of on all channels.

    Raises:
        PlotError: A result has another size than the original.
    """
    left, top, width, height = box
    panels = [("original", truth), *((_caption(r, truth, crop_border, test_y_channel), r.image) for r in results)]
    rows = 1 if len(panels) < 4 else 2
    columns = -(-len(panels) // rows)
    zoom, shape = 2.0, truth.shape
    whole = zoom * rows * shape[1] / shape[0]
    panel = zoom * width / height
    figure = Figure(figsize=(whole + panel * columns + 0.4, zoom * rows + 0.45 * rows + 0.3), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[whole, *[panel] * columns])
    overview = figure.add_subplot(grid[:, 0])
    overview.imshow(truth[..., ::-1])
    overview.add_patch(
        Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=_COLOURS[0], linewidth=1.8)
    )
    overview.set_title(title, fontsize=9)
    overview.set_axis_off()
    for i, (caption, image) in enumerate(panels):
        axis = figure.add_subplot(grid[i // columns, 1 + i % columns])
        axis.imshow(image[top : top + height, left : left + width, ::-1], interpolation="nearest")
        axis.set_title(caption, fontsize=8)
        axis.set_axis_off()
    return figure


def _caption(result: Restored, truth: np.ndarray, border: int, y_channel: bool) -> str:
    if result.image.shape != truth.shape:
        raise PlotError(f"{result.label}: the image is {result.image.shape[1]} x {result.image.shape[0]}, "
                        f"the original {truth.shape[1]} x {truth.shape[0]}; they must have the same size")  # fmt: skip
    value = calculate_psnr(result.image, truth, crop_border=border, test_y_channel=y_channel)
    return f"{result.label}\n{value:.2f} dB"
