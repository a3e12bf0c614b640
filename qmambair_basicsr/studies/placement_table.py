"""Tables of which quantizer sits where in a network; ``tools.placement`` is their command."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence

import torch
from basicsr.archs import build_network
from rich.console import Console
from rich.table import Table

from ..layers.placement import PlacementRow, collapse, placement, quantizer_scalars
from ..layers.policy import remark
from ..recipes.option_files import read_options

COLUMNS = ("module", "count", "weight quantizer", "activation quantizer", "bits W/A", "quantized", "full precision")


def cells(row: PlacementRow) -> tuple[str, ...]:
    """The row as text, in the order of ``COLUMNS``."""
    numbers = str(row.quantized), str(row.full_precision)
    return (row.module or "(network)", str(row.count), row.weight, row.act, row.bits, *numbers)


def totals(rows: Sequence[PlacementRow], scalars: int) -> list[tuple[str, str]]:
    """Labelled totals: parameters by precision, quantizer scalars, and the size they add up to.

    Args:
        rows (Sequence[PlacementRow]): All rows of the network.
        scalars (int): Trainable scalars of the quantizers, kept in 32 bits.
    """
    quantized, full = sum(r.quantized for r in rows), sum(r.full_precision for r in rows)
    bits = sum(r.quantized * r.weight_bits for r in rows) + 32 * (full + scalars)
    return [
        ("quantized parameters", f"{quantized:,}"),
        ("full-precision parameters", f"{full:,}"),
        ("quantizer parameters (full precision)", f"{scalars:,}"),
        ("size", f"{bits / 8 / 1024:,.1f} KiB, full precision {4 * (quantized + full) / 1024:,.1f} KiB"),
    ]


def render(rows: Sequence[PlacementRow], summary: Sequence[tuple[str, str]], form: str) -> str:
    """Format rows and totals.

    Args:
        rows (Sequence[PlacementRow]): Rows to show.
        summary (Sequence[tuple[str, str]]): Labelled totals; not part of the CSV.
        form (str): 'table', 'csv' or 'markdown'.
    """
    out = io.StringIO()
    if form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(cells(row) for row in rows)
    elif form == "markdown":
        lines = [COLUMNS, ["---"] * 4 + [":---:", "---:", "---:"], *map(cells, rows)]
        out.writelines(f"| {' | '.join(line)} |\n" for line in lines)
        out.writelines(f"\n{label}: {value}\n" for label, value in summary)
    else:
        table = Table(*COLUMNS[:5])
        for column in COLUMNS[5:]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*cells(row))
        width = None if sys.stdout.isatty() else 160
        console = Console(file=out, width=width, force_terminal=sys.stdout.isatty())
        console.print(table)
        for label, value in summary:
            console.print(f"{label}: {value}", highlight=False)
    return out.getvalue()


def run(args: argparse.Namespace) -> str:
    """The table that ``tools.placement`` was asked for, as text."""
    network = read_options(args.opt, ("network_g",))["network_g"]
    with torch.device("meta"):  # shapes are all that is needed
        net = build_network(network)
    rows = placement(net)
    summary = [("network", network["type"] + remark(network.get("quant", {}))), *totals(rows, quantizer_scalars(net))]
    return render(rows if args.full else collapse(rows), summary, args.form)
