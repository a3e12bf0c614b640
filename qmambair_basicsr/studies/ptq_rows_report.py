"""The table of ``tools.ptq_rows``: what is finished beside published figures, and what is missing."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_text
from .benchmark import describe
from .benchmark_table import read_published

__all__ = ["Reported", "write_report"]


@dataclass(frozen=True)
class Reported:
    """A row as far as it is known.

    Attributes:
        scale, bits, method: which.
        test: options of its test, which say what its published figures are called.
        record: see ``study_runs.execute``; ``results`` is empty where it is not finished.
        failure: message of a row that failed, or why its figures do not count.
    """

    scale: int
    bits: int
    method: str
    test: Mapping
    record: Mapping = field(default_factory=dict)
    failure: str = ""

    def value(self, name: str, metric: str = "psnr") -> float | None:
        """On a test set; None where it is missing."""
        found = self.record.get("results", {}).get(name)
        return found["metrics"][metric] if found else None


def _cell(row: Reported, name: str, published: Mapping) -> str:
    """PSNR and, in parentheses, the published figure."""
    value = row.value(name)
    paper = published.get(describe(row.test).key(name, "psnr"))
    beside = f" ({paper.value}{'†' if paper.doubt else ''})" if paper else ""
    return ("" if value is None else f"{value:.2f}") + beside


def markdown(rows: Sequence[Reported], sets: Sequence[str]) -> str:
    """A line for each row that has figures."""
    published = read_published()
    head = ["scale", "method", "W/A", *sets, "iterations", "images", "minutes"]
    lines = [head, ["---"] * 3 + ["---:"] * (len(sets) + 3)]
    for row in rows:
        if not row.record.get("results"):
            continue
        record, images = row.record, row.record["images"]
        counted = f"{images['calibration']}" + (f" + {images['training']}" if images["training"] else "")
        lines.append(
            [f"x{row.scale}", describe(row.test).method, f"{row.bits}/{row.bits}"]
            + [_cell(row, name, published) for name in sets]
            + [str(record["iterations"] or ""), counted, f"{record['seconds'] / 60:.1f}"]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(rows: Sequence[Reported], sets: Sequence[str]) -> str:
    """One line for each row and set; figures that are missing are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    about = ("iterations", "seconds", "threads", "torch", "device")
    writer.writerow(["scale", "method", "bits", "set", "psnr", "ssim", *about])
    for row in rows:
        for name in sets:
            figures = [row.value(name, metric) for metric in ("psnr", "ssim")]
            writer.writerow(
                [row.scale, row.method, row.bits, name, *("" if v is None else v for v in figures)]
                + [row.record.get(key, "") for key in about]
            )
    return text.getvalue()


def write_report(rows: Sequence[Reported], folder: Path, sets: Sequence[str]) -> str:
    """``ptq_rows.md`` and ``.csv``; returns the first.

    Args:
        rows: all that were asked for, finished or not.
        folder: where they come.
        sets: columns.
    """
    made = sorted({f"torch {r.record['torch']} on {r.record['device']}" for r in rows if r.record.get("results")})
    parts = [
        "MambaIRv2-light. PSNR (dB) on Y, in parentheses the published figure (†: doubtful in the publication); images for "
        "calibration + for training; minutes of the quantization (processor time; on a GPU, time). Published rows of Quamba, MambaQuant and "
        "PTQ4VM quantized the modules around the scans alone, like those marked (scan).",
        f"Made with {', '.join(made) or 'nothing yet'}.",
        markdown(rows, sets),
    ]
    absent = [(r, [name for name in sets if r.value(name) is None]) for r in rows]
    listed = [
        f"* x{r.scale}, {r.method}, {r.bits}/{r.bits}: {r.failure or ', '.join(names)}\n"
        for r, names in absent
        if names
    ]
    if listed:
        parts.append(f"{len(listed)} of {len(rows)} rows lack figures:\n\n{''.join(listed)}")
    text = "\n".join(part if part.endswith("\n") else f"{part}\n" for part in parts)
    write_text(folder / "ptq_rows.md", text)
    write_text(folder / "ptq_rows.csv", csv_table(rows, sets))
    return text
