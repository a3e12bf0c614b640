"""Tables and plot of an ablation: mean, spread over seeds, and differences to the reference paired by seed."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import write_bytes, write_text
from .ablation_studies import Run, studies
from .study_runs import Store

__all__ = ["Row", "collect", "markdown", "order", "write_plot", "write_tables"]

DIGITS = {"psnr": 2, "ssim": 4}


@dataclass(frozen=True)
class Row:
    """One variant at one width.

    Attributes:
        study, variant, bits: where it stands.
        values: ``{(set, metric): {seed: value}}``.
        differences: likewise, value minus that of the study's first variant with the same seed.
    """

    study: str
    variant: str
    bits: int
    values: dict[tuple[str, str], dict[int, float]]
    differences: dict[tuple[str, str], dict[int, float]]


def spread(values: Iterable[float]) -> tuple[float, float | None, int]:
    """Mean, sample standard deviation (None for one value) and number of values."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)


def collect(runs: Sequence[Run], store: Store, sets: Sequence[str]) -> list[Row]:
    """Rows of every study in its order, of runs that have figures of the wanted sets."""
    records = {run.name: store.read(run.name) for run in runs}
    found: dict[tuple[str, int, str], dict[tuple[str, str], dict[int, float]]] = {}
    for run in runs:
        for study, variant in run.places:
            for name, result in records[run.name]["results"].items():
                for metric, value in result["metrics"].items() if name in sets else ():
                    values = found.setdefault((study, run.bits, variant), {}).setdefault((name, metric), {})
                    values[run.seed] = value
    rows = []
    for study, definition in studies().items():
        first = next(iter(definition.variants))
        for bits in dict.fromkeys(run.bits for run in runs):
            reference = found.get((study, bits, first), {})
            for variant in definition.variants:
                values = found.get((study, bits, variant))
                if values is None:
                    continue
                differences = {
                    cell: {s: v - reference[cell][s] for s, v in seeds.items() if s in reference.get(cell, {})}
                    for cell, seeds in values.items()
                }
                rows.append(Row(study, variant, bits, values, differences))
    return rows


def _figure(values: Iterable[float], metric: str, sign: str = "") -> str:
    mean, deviation, _ = spread(values)
    digits = DIGITS.get(metric, 4)
    return f"{mean:{sign}.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(cell for row in rows for cell in row.values))


def order(rows: Sequence[Row], name: str, metric: str = "psnr") -> str:
    """Variants of one study and width from best to worst by their mean on a set."""
    ranked = [
        (spread(row.values[name, metric].values())[0], row.variant) for row in rows if (name, metric) in row.values
    ]
    return " > ".join(variant for _, variant in sorted(ranked, key=lambda pair: -pair[0]))


def markdown(rows: Sequence[Row]) -> str:
    """All studies as Markdown tables; empty for no rows."""
    table = studies()
    lines: list[str] = []
    for study in dict.fromkeys(row.study for row in rows):
        own = [row for row in rows if row.study == study]
        columns = _columns(own)
        lines += [f"### {table[study].title}", "", f"{table[study].source}.", ""]
        heads = [f"{name} {metric.upper()}" for name, metric in columns]
        first = next(iter(table[study].variants))
        sets = [name for name, metric in columns if metric == "psnr"]
        heads += [f"{name} difference" for name in sets]
        lines.append("| " + " | ".join(["bits", "variant", "n", *heads]) + " |")
        lines.append("|---:|---|---:" + "|---:" * len(heads) + "|")
        for row in own:
            seeds = max(len(values) for values in row.values.values())
            cells = [_figure(row.values[c].values(), c[1]) if c in row.values else "–" for c in columns]
            for name in sets:
                differences = row.differences.get((name, "psnr"), {})
                cells.append(
                    _figure(differences.values(), "psnr", "+") if differences and row.variant != first else "–"
                )
            lines.append("| " + " | ".join([str(row.bits), row.variant, str(seeds), *cells]) + " |")
        lines.append("")
        for bits in dict.fromkeys(row.bits for row in own):
            for name in sets:
                lines.append(f"* {bits} bits, {name}: {order([r for r in own if r.bits == bits], name)}")
        lines.append("")
    return "\n".join(lines)


def summary_csv(rows: Sequence[Row]) -> str:
    """One line per variant, width, set and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ("study", "variant", "bits", "set", "metric", "mean", "std", "n", "difference", "difference_std")
    writer.writerow(head)
    for row in rows:
        for (name, metric), values in row.values.items():
            mean, deviation, n = spread(values.values())
            differences = row.differences[name, metric].values()
            delta, delta_std, _ = spread(differences) if differences else (None, None, 0)
            figures = [mean, deviation, n, delta, delta_std]
            shown = ["" if v is None else v if isinstance(v, int) else f"{v:.5f}" for v in figures]
            writer.writerow([row.study, row.variant, row.bits, name, metric, *shown])
    return out.getvalue()


def runs_csv(runs: Sequence[Run], store: Store) -> str:
    """One line per run, set and metric, with the seconds it took."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("run", "studies", "bits", "seed", "set", "metric", "value", "train_seconds"))
    for run in runs:
        record = store.read(run.name)
        places = "; ".join(f"{study} / {variant}" for study, variant in run.places)
        for name, result in record["results"].items():
            for metric, value in result["metrics"].items():
                writer.writerow((run.name, places, run.bits, run.seed, name, metric, value, record["train_seconds"]))
    return out.getvalue()


def write_tables(rows: Sequence[Row], store: Store, runs: Sequence[Run]) -> None:
    """``ablation.md``, ``summary.csv`` and ``runs.csv``; failed runs are listed at the end of the first."""
    names = {run.name: run for run in runs}
    failures = {name: text for name, text in store.failures().items() if name in names}
    text = (
        "PSNR and SSIM: mean ± standard deviation over n seeds. Difference: PSNR minus that of the first row with the "
        f"same seed.\n\n{markdown(rows)}"
    )
    if failures:
        text += "\n### Failed\n\n" + "".join(
            f"* {'; '.join(' / '.join(place) for place in names[name].places)}, {names[name].bits} bits, "
            f"seed {names[name].seed} ({name}): {message}\n"
            for name, message in failures.items()
        )
    write_text(store.root / "ablation.md", text)
    write_text(store.root / "summary.csv", summary_csv(rows))
    write_text(store.root / "runs.csv", runs_csv(runs, store))


def write_plot(rows: Sequence[Row], folder: Path, metric: str = "psnr") -> None:
    """``ablation.png`` and ``.pdf``: difference to the first variant, a panel per study and width, a colour per set.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ValueError("the plot needs matplotlib: pip install 'qmambair_basicsr[plot]'") from err
    keys = list(dict.fromkeys(row.study for row in rows))
    widths = list(dict.fromkeys(row.bits for row in rows))
    if not keys:
        return
    variants = {key: list(dict.fromkeys(row.variant for row in rows if row.study == key)) for key in keys}
    heights = [0.9 + 0.24 * len(variants[key]) for key in keys]
    figure = Figure(figsize=(4.6 * len(widths) + 2, sum(heights)), layout="constrained")
    panels = figure.subplots(len(keys), len(widths), squeeze=False, sharey="row", height_ratios=heights)
    sets = list(dict.fromkeys(name for row in rows for name, m in row.values if m == metric))
    for line, key in zip(panels, keys, strict=True):
        for panel, bits in zip(line, widths, strict=True):
            for i, name in enumerate(sets):
                shown = [
                    (variants[key].index(r.variant), *spread(r.differences[name, metric].values())[:2])
                    for r in rows
                    if (r.study, r.bits) == (key, bits) and r.differences.get((name, metric))
                ]
                panel.errorbar(
                    [mean for _, mean, _ in shown],
                    [at + 0.18 * (i - (len(sets) - 1) / 2) for at, _, _ in shown],
                    xerr=[deviation or 0.0 for _, _, deviation in shown],
                    fmt="o",
                    markersize=3.5,
                    linewidth=1,
                    color=f"C{i}",
                    label=name,
                )
            panel.axvline(0, color="0.7", linewidth=0.8, zorder=0)
            panel.set_yticks(range(len(variants[key])), [_short(variant) for variant in variants[key]], fontsize=7)
            panel.tick_params(axis="x", labelsize=7)
            panel.set_title(f"{key}, {bits} bits", fontsize=8)
        line[0].set_ylim(len(variants[key]) - 0.5, -0.5)
    for panel in panels[-1]:
        panel.set_xlabel(f"{metric.upper()} minus that of the first row (dB)", fontsize=7)
    panels[0][0].legend(fontsize=7)
    for suffix, options in (("png", {"dpi": 90}), ("pdf", {"metadata": {"CreationDate": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, **options)
        write_bytes(folder / f"ablation.{suffix}", buffer.getvalue())


def _short(variant: str) -> str:
    return variant if len(variant) <= 34 else variant[:33] + "…"
