"""Tables of parameters, multiply-accumulates and bit operations; ``tools.complexity`` is their command."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec

from rich import box
from rich.console import Console
from rich.table import Table

from ..recipes.option_contents import network_options
from ..recipes.option_files import read_options
from ..recipes.option_table import TASKS
from .complexity_count import Complexity, LayerCost, collapse, measure
from .complexity_record import FULL
from .paper_accounting import SIDE, WHY_THEY_DIFFER, PaperRow, table4

COLUMNS = ("layer", "n", "kind", "W/A bits", "parameters", "times bits/32", "MACs", "bit operations")
_OUTPUT = (1280, 720)
_TERMINAL_WIDTH = 160


def input_size(height: int | None, width: int | None, scale: int) -> tuple[int, int]:
    """Height and width of the network's input.

    Args:
        height, width: as asked for; None for both means the input that leads to 1280 x 720.
        scale: Of the network; the default is cropped to a multiple of it, as test images are.

    Raises:
        ValueError: only one of them.
    """
    if (height is None) != (width is None):
        raise ValueError("--height and --width go together; give both, or neither for a 1280x720 result")
    if height is None:
        return _OUTPUT[1] // scale, _OUTPUT[0] // scale
    return height, width


def engineering(value: float, digits: int = 4) -> str:
    """So many digits and a unit: ``15.71 G``; an empty text for 0."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= limit:
            return f"{value / limit:.{digits}g}{unit}"
    return f"{value:g}" if value else ""


def _widths(row: LayerCost) -> str:
    if not row.products:  # of the parameters, which share one width unless there is a bias
        return f"{row.parameter_bits / row.parameters:.3g}/-"
    weights, acts = zip(*((p.weight, p.act) for p in row.products), strict=True)
    return "/".join(str(w[0]) if len(set(w)) == 1 else f"{min(w)}-{max(w)}" for w in (weights, acts))


def cells(row: LayerCost) -> tuple[str, ...]:
    """A row as text, in the order of ``COLUMNS``."""
    parameters = f"{row.parameters:,}", f"{row.weighted_parameters:,.0f}"
    work = engineering(row.macs), engineering(row.bit_operations)
    return (row.name, str(row.count), row.kind, _widths(row), *(parameters if row.parameters else ("", "")), *work)


def totals(result: Complexity) -> dict[str, float]:
    """Totals by name. Parameters and bit operations of the full-precision network are for comparison."""
    sums = {
        "parameters": result.total("parameters"),
        "parameters_at_their_bits": result.total("weighted_parameters"),
        "quantizer_parameters": result.quantizer_parameters,
        "macs": result.total("macs"),
        "macs_with_a_32_bit_operand": result.total("full_precision_macs"),
        "bit_operations": result.total("bit_operations"),
        "bit_operations_in_full_precision": result.total("macs") * FULL**2,
        "macs_times_bits_by_32": result.total("weighted_macs"),
        "fp32_bytes": 4 * result.total("parameters"),
    }
    if result.packed is not None:
        sums |= {f"packed_{name}_bytes": value for name, value in asdict(result.packed).items() if name != "fp32"}
    return sums


def summary(result: Complexity) -> list[str]:
    """The totals in sentences."""
    t = totals(result)

    def less(part: float, whole: float) -> str:
        return f"{100 * (1 - part / whole):.1f} % less" if part != whole else "none quantized"

    lines = [
        f"{result.network}, input {_shape(result.input_shape)}, output {_shape(result.output_shape)}",
        f"parameters: {t['parameters']:,}; times bits/32: {t['parameters_at_their_bits']:,.0f} "
        f"({less(t['parameters_at_their_bits'], t['parameters'])}); quantizers add {t['quantizer_parameters']:,}",
        f"multiply-accumulates: {engineering(t['macs'])}, of these "
        f"{100 * t['macs_with_a_32_bit_operand'] / t['macs']:.1f} % with an operand of 32 bits; "
        f"times bits/32 of the wider operand: {engineering(t['macs_times_bits_by_32'])}",
        f"bit operations: {engineering(t['bit_operations'])}, full precision "
        f"{engineering(t['bit_operations_in_full_precision'])} "
        f"({less(t['bit_operations'], t['bit_operations_in_full_precision'])})",
    ]
    if result.packed is None:
        unmeasured = (
            "; the packed file was not measured: install the extra 'export'" if result.quantizer_parameters else ""
        )
        return [*lines, f"stored in full precision: {t['fp32_bytes']:,} bytes{unmeasured}"]
    p = result.packed
    return [
        *lines,
        f"packed file: {p.file:,} bytes (codes {p.codes:,}, quantizers {p.quantizers:,}, full precision "
        f"{p.full_precision:,}, header {p.file - p.codes - p.quantizers - p.full_precision:,}); 4 bytes a parameter: "
        f"{p.fp32:,}, {p.ratio:.2f} times as much",
    ]


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[3]}x{shape[2]}"


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, rule, *lines))


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]], left: int, title: str | None = None) -> str:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return _console_text(table)


def _console_text(*what: object) -> str:
    out = io.StringIO()
    terminal = sys.stdout.isatty()
    console = Console(file=out, width=None if terminal else _TERMINAL_WIDTH, force_terminal=terminal)
    for item in what:
        console.print(item, highlight=False, markup=False)
    return out.getvalue()


def _raw(row: LayerCost) -> dict[str, object]:
    return {
        "layer": row.name,
        "count": row.count,
        "kind": row.kind,
        "bits": " ".join(f"{p.weight}/{p.act}" for p in row.products) or _widths(row),
        "parameters": row.parameters,
        "parameters_at_their_bits": row.weighted_parameters,
        "macs": row.macs,
        "bit_operations": row.bit_operations,
        "macs_times_bits_by_32": row.weighted_macs,
    }


def render(result: Complexity, rows: Sequence[LayerCost], form: str) -> str:
    """Table and totals as text.

    Args:
        result: The counts.
        rows: Rows to show, all of them or collapsed ones.
        form: 'table', 'markdown', 'csv' (exact figures, last line the totals) or 'json'.
    """
    raw = [_raw(row) for row in rows]
    if form == "json":
        head = {"network": result.network, "input": result.input_shape, "output": result.output_shape}
        return json.dumps(head | {"totals": totals(result), "layers": raw}, indent=1) + "\n"
    if form == "csv":
        sums = {key: result.total(key) for key in ("parameters", "macs", "bit_operations")}
        sums |= {
            "parameters_at_their_bits": result.total("weighted_parameters"),
            "macs_times_bits_by_32": result.total("weighted_macs"),
        }
        return _csv([*raw, {"layer": "total", "count": sum(row.count for row in rows), **sums}])
    lines = [cells(row) for row in rows]
    if form == "markdown":
        return _markdown(COLUMNS, lines, 4) + "".join(f"\n{line}\n" for line in summary(result))
    return _table(COLUMNS, lines, 4) + _console_text(*summary(result))


def _csv(rows: Sequence[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def paper_rows() -> list[dict[str, object]]:
    """Table 4 as the paper counts, beside the same figures of the real networks for the same input."""
    tasks = {"MambaIR-light": "lightSRx2", "MambaIR-classic": "SRx2"}
    rows = []
    for paper in table4():
        real = measure(network_options("MambaIR", TASKS[tasks[paper.network]], paper.bits), SIDE, SIDE, packed=False)
        rows.append(_beside(paper, real))
    return rows


def _beside(paper: PaperRow, real: Complexity) -> dict[str, object]:
    return {
        "network": paper.network,
        "bits": paper.bits,
        "printed parameters": paper.printed_parameters,
        "printed FLOPs": paper.printed_operations,
        "computed parameters": paper.parameters,
        "computed FLOPs": paper.operations,
        "real parameters": real.total("weighted_parameters"),
        "real MACs x bits/32": real.total("weighted_macs"),
        "real MACs": real.total("macs"),
        "real bit operations": real.total("bit_operations"),
    }


def render_paper(rows: Sequence[dict[str, object]], form: str) -> str:
    """Table 4 and the reasons for the differences, in a form of :func:`render`."""
    if form == "json":
        return json.dumps({"rows": rows, "why": WHY_THEY_DIFFER}, indent=1) + "\n"
    if form == "csv":
        return _csv(rows)
    title = "Table 4 of Q-MambaIR (x2, input 320x320): as printed, as computed by its rules, and the real networks"
    lines = []
    for row in rows:
        exact = f"{row['computed parameters']:,.0f}", engineering(row["computed FLOPs"], 5)
        real = f"{row['real parameters']:,.0f}", *(engineering(row[key]) for key in list(row)[7:])
        lines.append((row["network"], str(row["bits"]), row["printed parameters"], row["printed FLOPs"], *exact, *real))
    reasons = [f"{i}. {reason}" for i, reason in enumerate(WHY_THEY_DIFFER, 1)]
    head = "Why they differ:"
    if form == "markdown":
        return f"{title}\n\n{_markdown(list(rows[0]), lines, 1)}\n{head}\n\n" + "".join(f"{r}\n" for r in reasons)
    return _table(list(rows[0]), lines, 1, title) + _console_text(head, *reasons)


def run(args: argparse.Namespace) -> str:
    """The report that the command line asks for, as text."""
    if args.paper_accounting:
        if args.height or args.width:
            raise ValueError(f"Table 4 is for an input of {SIDE}x{SIDE}; leave --height and --width out")
        return render_paper(paper_rows(), args.form)
    opt = read_options(args.opt, ("network_g",))
    height, width = input_size(args.height, args.width, opt.get("scale", 1))
    result = measure(opt["network_g"], height, width, packed=find_spec("safetensors") is not None)
    return render(result, result.rows if args.full else collapse(result.rows), args.form)
