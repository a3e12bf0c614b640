"""The tables and the figure of ``tools.generality``: what is finished, and what is missing by name."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_bytes, write_text
from ..recipes.generality_table import EVERYWHERE, METHODS, Compared

__all__ = ["FULL", "Case", "Row", "csv_table", "markdown", "verdict", "write_report"]

FULL = "FP"
OURS = "Q-MambaIR"
MISSING = "missing"
FINISHED = "finished"


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        network: what is trained.
        method: name of a method, or ``FP``.
        bits: 32 for ``FP``.
        seed: of weights, patches and their order.
    """

    network: Compared
    method: str
    bits: int
    seed: int


@dataclass(frozen=True)
class Row:
    """What is known of a case.

    Attributes:
        case: which.
        record: its record (see ``study_runs.Store``); empty unless it is finished.
        state: ``finished``, ``missing``, or why it failed.
    """

    case: Case
    record: Mapping = field(default_factory=dict)
    state: str = MISSING

    def value(self, name: str, metric: str = "psnr") -> float | None:
        """On a test set; None where it is missing."""
        return self.record["results"][name]["metrics"][metric] if self.record else None


def _values(rows: Sequence[Row], network: Compared, method: str, bits: int, name: str) -> list[float | None]:
    """PSNR on a set, one value for each seed."""
    wanted = network, method, bits
    return [row.value(name) for row in rows if (row.case.network, row.case.method, row.case.bits) == wanted]


def _networks(rows: Sequence[Row]) -> list[Compared]:
    return list(dict.fromkeys(row.case.network for row in rows))


def markdown(rows: Sequence[Row], bits: Sequence[int], sets: Sequence[str]) -> str:
    """A row for each network and set, PSNR of every method at every width; several seeds as mean ± deviation."""
    methods = [m for m in (*METHODS, EVERYWHERE) if any(row.case.method == m for row in rows)]
    columns = [(method, width) for width in bits for method in methods]
    head = ["network", "task", "set", FULL, *(f"{method} {width}/{width}" for method, width in columns)]
    lines = [head, ["---"] * 3 + ["---:"] * (len(columns) + 1)]
    for network in _networks(rows):
        for name in sets:
            values = [_values(rows, network, *column, name) for column in ((FULL, 32), *columns)]
            lines.append([network.family, network.task, name, *map(_cell, values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(values: Sequence[float | None]) -> str:
    """Empty for a method that the network does not have."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING if values else ""
    text = f"{statistics.mean(known):.2f}" + (f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else "")
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def gains(rows: Sequence[Row], other: str, bits: int, sets: Sequence[str]) -> dict[str, float]:
    """By how much Q-MambaIR is above another method in dB, by network: mean over the sets and the seeds both have."""
    found = {}
    for network in _networks(rows):
        differences = [
            ours - theirs
            for name in sets
            for ours, theirs in zip(
                _values(rows, network, OURS, bits, name), _values(rows, network, other, bits, name), strict=False
            )
            if ours is not None and theirs is not None
        ]
        if differences:
            found[network.family] = statistics.mean(differences)
    return found


def verdict(rows: Sequence[Row], bits: Sequence[int], sets: Sequence[str]) -> str:
    """In how many networks Q-MambaIR is above each other method, and by how much, as Markdown's list."""
    lines = []
    for width in bits:
        for other in (m for m in (*METHODS, EVERYWHERE) if m != OURS):
            having = {row.case.network.family for row in rows if row.case.method == other}
            found = gains(rows, other, width, sets)
            if found:
                above = sum(gain > 0 for gain in found.values())
                single = ", ".join(f"{name} {gain:+.2f}" for name, gain in found.items())
                without = f"; not known for {len(having) - len(found)}" if len(having) > len(found) else ""
                lines.append(
                    f"* {width} bits: {OURS} above {other} in {above} of {len(found)} networks, on average by "
                    f"{statistics.mean(found.values()):+.2f} dB ({single}){without}\n"
                )
    return "".join(lines)


def csv_table(rows: Sequence[Row], sets: Sequence[str]) -> str:
    """One line for each training and set; figures that are missing are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    about_case = ("network", "task", "method", "bits", "seed", "set", "psnr", "ssim", "state")
    about_training = ("train_seconds", "test_seconds", "torch", "device")
    writer.writerow([*about_case, *about_training])
    for row in rows:
        case = row.case
        about = [row.record.get(key, "") for key in about_training]
        for name in sets:
            figures = [row.value(name, metric) for metric in ("psnr", "ssim")]
            shown = ["" if value is None else value for value in figures]
            name_of = [case.network.family, case.network.task, case.method, case.bits, case.seed]
            writer.writerow([*name_of, name, *shown, row.state, *about])
    return text.getvalue()


def figure(rows: Sequence[Row], bits: Sequence[int], sets: Sequence[str]) -> bytes:
    """PNG: what quantization costs each network, a panel for each width and a mark for each method.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ValueError("the figure needs matplotlib: pip install 'qmambair_basicsr[plot]'") from err
    networks = _networks(rows)
    drawn = Figure(figsize=(5.5 * len(bits), 1.2 + 0.4 * len(networks)), layout="constrained")
    panels = drawn.subplots(1, len(bits), squeeze=False, sharey=True)[0]
    for panel, width in zip(panels, bits, strict=True):
        for i, method in enumerate(m for m in (*METHODS, EVERYWHERE) if any(r.case.method == m for r in rows)):
            points = [
                (quantized - full, at)
                for at, network in enumerate(networks)
                for name in sets
                for full, quantized in zip(
                    _values(rows, network, FULL, 32, name), _values(rows, network, method, width, name), strict=False
                )
                if full is not None and quantized is not None
            ]
            panel.scatter(
                [x for x, _ in points], [y + 0.16 * (i - 1.5) for _, y in points], s=14, marker="osD^"[i], label=method
            )
        panel.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        panel.set_title(f"{width} bits", fontsize=9)
        panel.set_xlabel("PSNR minus that of full precision (dB), a mark for each test set and seed", fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
    panels[0].set_yticks(range(len(networks)), [network.family for network in networks], fontsize=8)
    panels[0].set_ylim(len(networks) - 0.5, -0.5)
    panels[0].legend(fontsize=7)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def write_report(
    rows: Sequence[Row], folder: Path, bits: Sequence[int], sets: Sequence[str], recipe: str, drawn: bool = True
) -> str:
    """``generality.md``, ``.csv`` and ``.png``.

    Args:
        rows: every case of the study, finished or not.
        folder: where they come.
        bits, sets: columns and rows of the table.
        recipe: how everything was trained, in words.
        drawn: also the figure, where there are widths.

    Returns:
        The Markdown.
    """
    absent = [row for row in rows if row.state != FINISHED]
    versions = sorted({f"torch {row.record['torch']} on {row.record['device']}" for row in rows if row.record})
    parts = [f"PSNR in dB. {recipe}", f"Made with {', '.join(versions) or 'nothing yet'}.", markdown(rows, bits, sets)]
    if text := verdict(rows, bits, sets):
        parts.append(text)
    if absent:
        listed = "".join(
            f"* {r.case.network.family}, {r.case.method}, {r.case.bits} bits, seed {r.case.seed}: {r.state}\n"
            for r in absent
        )
        parts.append(f"{len(absent)} of {len(rows)} trainings are missing:\n\n{listed}")
    text = "\n".join(part if part.endswith("\n") else f"{part}\n" for part in parts)
    write_text(folder / "generality.md", text)
    write_text(folder / "generality.csv", csv_table(rows, sets))
    if drawn and bits:
        write_bytes(folder / "generality.png", figure(rows, bits, sets))
    return text
