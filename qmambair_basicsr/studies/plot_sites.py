"""Figures of the quantizers inside a network: histograms, DLS ranges, RFA thresholds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from ..layers.sites import PlacedSite, parameter_sites, quantizers_of
from ..quantizers import RFA
from .plot_data import PlotError, SiteValues, choose

BEFORE, AFTER, BAND = "#8d99ae", "#d1495b", "#2a6f97"
PAGE = 16  # panels on a page
_BINS = (24, 120)  # for few and for many values


def short(name: str) -> str:
    """A site's name without the parts that all sites share: ``layers.1 blocks.0 self_attention.u``."""
    return re.sub(r"\.?residual_group\.", " ", name).replace("self_attention.", "").replace("selectiveScan.", "")


def _grid(count: int, width: float, height: float, columns: int = 4) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def histogram_pages(sites: Sequence[SiteValues], title: str) -> list[Figure]:
    """Distributions before and after quantization (Q-MambaIR, Figures 3 and 5), ``PAGE`` sites on a page."""
    pages = []
    for start in range(0, len(sites), PAGE):
        chosen = sites[start : start + PAGE]
        figure, axes = _grid(len(chosen), 3.4, 2.5)
        for axis, site in zip(axes, chosen, strict=True):
            _histogram(axis, site)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        figure.suptitle(title, fontsize=11)
        pages.append(figure)
    return pages


def _histogram(axis: Axes, site: SiteValues) -> None:
    values = np.concatenate((site.before, site.after))
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, int(np.clip(2 * site.before.size**0.5, *_BINS)) + 1)
    before, after = (np.histogram(v, edges)[0] / v.size for v in (site.before, site.after))
    axis.stairs(before, edges, fill=True, color=BEFORE, label="before")
    axis.stairs(after, edges, color=AFTER, linewidth=1.1, label="after quantization")
    axis.axvspan(
        max(site.low, low), min(site.high, high), color=BAND, alpha=0.10, linewidth=0, label="range of the codes"
    )
    for side in (-3, 3):
        place = site.mean + side * site.std
        if low <= place <= high:
            axis.axvline(place, color=BAND, linestyle="--", linewidth=0.9, label="mean ± 3 std" if side < 0 else None)
    if site.mean - 3 * site.std < low:  # keep the legend complete on whichever panel it is read from
        axis.plot([], [], color=BAND, linestyle="--", linewidth=0.9, label="mean ± 3 std")
    axis.set_yscale("log")
    axis.set_ylim(max(0.5 / site.before.size, 1e-6), 1.5)
    axis.set_title(f"{short(site.name)}\n{site.kind}, {site.bits} bits", fontsize=8)
    shares = f"outside 3 std {_percent(site.outliers)}, outside the codes {_percent(site.clipped)}"
    axis.set_xlabel(shares, fontsize=7)
    axis.tick_params(labelsize=7)
    axis.set_ylabel("share of values", fontsize=7)


def _percent(share: float) -> str:
    return "0 %" if share == 0 else "< 0.01 %" if share < 1e-4 else f"{100 * share:.2f} %"


def range_figure(sites: Sequence[SiteValues], title: str) -> Figure:
    """The range that each DLS grid covers, in standard deviations from the mean of what it quantizes.

    Args:
        sites: Sites of DLS quantizers.
        title: Of the figure.

    Raises:
        PlotError: There is none.
    """
    sites = [site for site in sites if site.kind == "DLS"]
    if not sites:
        raise PlotError("ranges: no DLS quantizer among the sites; the network has none, or --sites leaves them out")
    figure = Figure(figsize=(7.5, 0.24 * len(sites) + 1.6), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-3, 3, color=BAND, alpha=0.14, linewidth=0, label="mean ± 3 std")
    for y, site in enumerate(sites):
        std = site.std or 1.0
        low, high = ((end - site.mean) / std for end in (site.low, site.high))
        least, most = ((end - site.mean) / std for end in (site.before.min(), site.before.max()))
        axis.plot([least, most], [y, y], color=BEFORE, linewidth=1, zorder=2, label="values" if y == 0 else None)
        axis.plot([low, high], [y, y], color=AFTER, linewidth=4, solid_capstyle="butt", zorder=3,
                  label="range of the codes" if y == 0 else None)  # fmt: skip
    axis.set_xscale("symlog", linthresh=4, linscale=2)
    ticks = [-100, -30, -10, -4, -3, -2, -1, 0, 1, 2, 3, 4, 10, 30, 100]
    left, right = axis.get_xlim()
    axis.set_xticks([t for t in ticks if left <= t <= right], [str(t) for t in ticks if left <= t <= right])
    axis.minorticks_off()
    axis.set_yticks(range(len(sites)), [short(site.name) for site in sites], fontsize=7)
    axis.set_ylim(len(sites) - 0.4, -0.6)
    axis.set_xlabel("standard deviations from the mean (linear to 4, then logarithmic)", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", linewidth=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def rfa_sites(net: nn.Module) -> dict[str, PlacedSite]:
    """Sites of RFA quantizers by name.

    Raises:
        PlotError: There is none.
    """
    found = {site.site.label: site for site in parameter_sites(net) if isinstance(site.quantizer, RFA)}
    if not found:
        kinds = sorted({type(q).__name__ for q in quantizers_of(net).values()})
        raise PlotError(
            f"thresholds: no weight is quantized by RFA; the network has {', '.join(kinds) or 'no quantizer'}"
        )
    return found


def threshold_map(net: nn.Module, title: str) -> Figure:
    """How far every threshold of every RFA weight moved from its uniform start, in units of a step."""
    sites = rfa_sites(net)
    by_bits: dict[int, list[str]] = {}
    for name, site in sites.items():
        by_bits.setdefault(site.quantizer.bits, []).append(name)
    heights = [0.17 * len(names) for names in by_bits.values()]
    figure = Figure(figsize=(7.5, sum(heights) + 1.4 * len(by_bits)), layout="constrained")
    axes = figure.subplots(len(by_bits), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (bits, names) in zip(axes, by_bits.items(), strict=True):
        quantizers = [sites[name].quantizer for name in names]
        start = np.arange(quantizers[0].qmin, quantizers[0].qmax + 1)
        moved = np.stack([q.ordered_thresholds().detach().cpu().numpy() - start for q in quantizers])
        limit = max(np.abs(moved).max(), 1e-3)
        image = axis.imshow(moved, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axis.set_yticks(range(len(names)), [short(name) for name in names], fontsize=5.5)
        step = max(len(start) // 16, 1)
        axis.set_xticks(range(0, len(start), step), start[::step], fontsize=7)
        axis.set_xlabel(f"threshold, by its uniform place ({bits} bits)", fontsize=8)
        figure.colorbar(image, ax=axis, pad=0.01, aspect=40).set_label("moved by (steps)", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def staircase_pages(net: nn.Module, patterns: Sequence[str] | None, title: str) -> list[Figure]:
    """Input-output curves of RFA weights beside uniform rounding, over the distribution of the weights."""
    sites = rfa_sites(net)
    names = choose(sites, patterns)
    pages = []
    for start in range(0, len(names), PAGE):
        chosen = names[start : start + PAGE]
        figure, axes = _grid(len(chosen), 3.0, 2.7)
        for axis, name in zip(axes, chosen, strict=True):
            _staircase(axis, name, sites[name])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        figure.suptitle(title, fontsize=11)
        pages.append(figure)
    return pages


def _staircase(axis: Axes, name: str, site: PlacedSite) -> None:
    quantizer = site.quantizer
    codes, scale, zero = quantizer.to_int(site.tensor())
    inside = (site.tensor().float() / scale + zero).flatten().cpu().numpy()
    levels = np.arange(quantizer.qmin, quantizer.qmax + 1)
    thresholds = quantizer.ordered_thresholds().detach().cpu().numpy()
    left, right = quantizer.qmin - 1, quantizer.qmax + 1
    counts, edges = np.histogram(inside, np.linspace(left, right, 61))
    # the distribution fills the height of the panel
    axis.stairs(quantizer.qmin + counts / max(counts.max(), 1) * (levels[-1] - levels[0]), edges, baseline=quantizer.qmin,
                fill=True, color=BEFORE, alpha=0.45, label="weights")  # fmt: skip
    for points, color, style, width, label in (
        (levels.astype(float), "black", "--", 0.8, "uniform rounding"),
        (thresholds, AFTER, "-", 1.4, "RFA"),
    ):
        borders = np.concatenate(([left], (points[1:] + points[:-1]) / 2, [right]))
        axis.stairs(levels, borders, baseline=None, color=color, linestyle=style, linewidth=width, label=label)
    used = np.unique(codes.cpu().numpy()).size
    moved = np.abs(thresholds - levels).max()
    axis.set_title(
        f"{short(name)}\nmoved by up to {moved:.2f} steps, {used} of {levels.size} levels used", fontsize=7.5
    )
    axis.set_xlim(left, right)
    axis.set_xlabel("(w + offset) / scale", fontsize=7)
    axis.set_ylabel("code", fontsize=7)
    axis.tick_params(labelsize=7)
