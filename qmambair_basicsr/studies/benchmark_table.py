"""Result tables of one task as Markdown, CSV and LaTeX, with published figures beside ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources

__all__ = ["Entry", "Published", "csv_table", "latex_table", "markdown_table", "read_published"]

DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "st_lpips": 4}
LOWER_IS_BETTER = ("lpips", "st_lpips")
NOTE = "bold: best, underlined: second best of the quantized rows; in parentheses the published figure"
SCAN_ALONE = " (scan)"
"""Behind the name of a method that quantized the modules around the scans, and SPR2Q's quantizer the rest: as in its tables."""

DOUBT_NOTE = "doubtful in the publication, see the CSV file"


@dataclass(frozen=True)
class Published:
    """A figure of a paper: where it stands, and why it is doubtful (empty = it is not)."""

    value: str
    source: str
    doubt: str = ""


@dataclass
class Entry:
    """One tested network.

    Attributes:
        model, task, method: as in ``published.csv`` (``MambaIR``, ``SRx2``, ``Q-MambaIR``).
        bits: weights and activations, ``(2, 2)``; 32 = full precision.
        size: KiB of the stored network, quantized weights at their bits.
        results: ``{set: {metric: value}}``.
    """

    model: str
    task: str
    method: str
    bits: tuple[int, int]
    size: float | None = None
    results: dict[str, dict[str, float]] = field(default_factory=dict)

    def key(self, name: str, metric: str) -> tuple:
        """Key of the published figure of one cell; names of sets and metrics are compared in lower case."""
        return (
            self.model,
            self.task,
            self.method.removesuffix(SCAN_ALONE),
            *map(str, self.bits),
            name.lower(),
            metric.lower(),
        )


def read_published() -> dict[tuple, Published]:
    """Published figures by :meth:`Entry.key`, from the package's ``studies/data/published.csv``."""
    text = resources.files(__package__).joinpath("data", "published.csv").read_text(encoding="utf-8")
    return {
        (r["model"], r["task"], r["method"], r["w_bits"], r["a_bits"], r["dataset"].lower(), r["metric"].lower()): (
            Published(r["value"], r["source"], r["doubt"])
        )
        for r in csv.DictReader(io.StringIO(text))
    }


def _columns(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """(set, metric) pairs in the order in which they first appear."""
    return list(
        dict.fromkeys((name, metric) for e in entries for name, values in e.results.items() for metric in values)
    )


def _ranks(entries: Sequence[Entry], name: str, metric: str) -> dict[int, int]:
    """Places 1 and 2 among the quantized entries: index of the entry -> place; equal printed values share one."""
    digits = DIGITS.get(metric, 4)
    values = {
        i: round(e.results[name][metric], digits)
        for i, e in enumerate(entries)
        if e.bits != (32, 32) and metric in e.results.get(name, {})
    }
    best = sorted(set(values.values()), reverse=metric not in LOWER_IS_BETTER)[:2]
    return {i: best.index(value) + 1 for i, value in values.items() if value in best}


def _cells(entries: Sequence[Entry], published: dict) -> Iterator[tuple[Entry, list[tuple]]]:
    """Entries with their cells ``(text or None, place or None, Published or None)``."""
    columns = _columns(entries)
    ranks = [_ranks(entries, *column) for column in columns]
    for i, entry in enumerate(entries):
        cells = []
        for (name, metric), places in zip(columns, ranks, strict=True):
            value = entry.results.get(name, {}).get(metric)
            text = None if value is None else f"{value:.{DIGITS.get(metric, 4)}f}"
            cells.append((text, places.get(i), published.get(entry.key(name, metric))))
        yield entry, cells


def _head(entry: Entry) -> list[str]:
    size = "" if entry.size is None else f"{entry.size:,.0f}"
    return [entry.model, entry.method, f"{entry.bits[0]}/{entry.bits[1]}", size]


def _table(entries: Sequence[Entry], published: dict, marks: dict[int, str], dagger: str, missing: str) -> list[list]:
    """Rows of finished cells: marks for places 1 and 2, the published figure in parentheses."""
    rows = []
    for entry, cells in _cells(entries, published):
        row = _head(entry)
        for text, place, paper in cells:
            cell = missing if text is None else marks.get(place, "{}").format(text)
            if paper is not None:
                cell += f" ({paper.value}{dagger if paper.doubt else ''})"
            row.append(cell)
        rows.append(row)
    return rows


def markdown_table(task: str, entries: Sequence[Entry], published: dict[tuple, Published]) -> str:
    """The table in Markdown."""
    columns = [f"{name} {metric.upper()}" for name, metric in _columns(entries)]
    head = ["model", "method", "W/A", "KiB", *columns]
    rows = _table(entries, published, {1: "**{}**", 2: "<u>{}</u>"}, "†", "–")
    lines = [f"## {task}", "", "| " + " | ".join(head) + " |", "|---|---|---|---:" + "|---:" * len(columns) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"{NOTE}; † {DOUBT_NOTE}.", ""])


def latex_table(task: str, entries: Sequence[Entry], published: dict[tuple, Published]) -> str:
    """The table in LaTeX (``booktabs``)."""

    def escape(text: str) -> str:
        return text.replace("_", r"\_").replace("%", r"\%")

    columns = [escape(f"{name} {metric.upper()}") for name, metric in _columns(entries)]
    rows = _table(entries, published, {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}, r"$^\dagger$", "--")
    body = [" & ".join([*map(escape, row[:4]), *row[4:]]) + r" \\" for row in rows]
    return "\n".join(
        [
            rf"% {task}; {NOTE}; $^\dagger$ {DOUBT_NOTE}",
            r"\begin{tabular}{lllr" + "r" * len(columns) + "}",
            r"\toprule",
            " & ".join(["model", "method", "W/A", "KiB", *columns]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def csv_table(task: str, entries: Sequence[Entry], published: dict[tuple, Published]) -> str:
    """The table as CSV, one line per figure, with the source and the doubt of the published one."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "task",
            "model",
            "method",
            "w_bits",
            "a_bits",
            "kib",
            "dataset",
            "metric",
            "value",
            "rank",
            "published",
            "difference",
            "source",
            "doubt",
        ]
    )
    columns = _columns(entries)
    for entry, cells in _cells(entries, published):
        size = "" if entry.size is None else f"{entry.size:.1f}"
        for (name, metric), (text, place, paper) in zip(columns, cells, strict=True):
            if text is None:
                continue
            beside = ["", "", "", ""]
            if paper is not None:
                difference = f"{float(text) - float(paper.value):+.{DIGITS.get(metric, 4)}f}"
                beside = [paper.value, difference, paper.source, paper.doubt]
            head = [task, entry.model, entry.method, *entry.bits, size]
            writer.writerow([*head, name, metric, text, place or "", *beside])
    return out.getvalue()
