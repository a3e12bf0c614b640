"""Tables, heat map and option files of ``tools.sensitivity``."""

from __future__ import annotations

import argparse
import csv
import io
import math
import re
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.util import find_spec

import torch
from basicsr.archs import build_network
from rich.console import Console
from rich.table import Table

from ..files import write_bytes, write_text
from ..inference.image_sets import middles
from ..inference.networks import load_full_precision
from ..layers.info import network_info
from ..layers.policy import apply_policy
from ..ptq.mixed import Rated, allocate, average_bits, by_blocks, measured, scores, sites_to_rate
from ..quantizers import QuantSpec
from ..recipes.option_contents import render
from ..recipes.option_files import read_options


class SensitivityError(ValueError):
    """What was asked for cannot be done; the message says why."""


def table(rated: Sequence[Rated], direct: Mapping[str, Rated], chosen: Mapping[str, int]) -> list[list[str]]:
    """Rows of text, the most sensitive site first; the head is the first one."""
    widths = sorted({bits for r in rated for bits in r.costs})

    def cells(costs: Mapping[int, float]) -> list[str]:
        return [f"{costs[b]:.3e}" if b in costs else "-" for b in widths]

    head = ["site", "kind", "values", *(f"score {b}b" for b in widths)]
    head += [f"measured {b}b" for b in widths] if direct else []
    rows = [head + (["bits"] if chosen else [])]
    for r in sorted(rated, key=lambda r: -r.costs[min(r.costs)]):
        row = [r.label, r.kind, str(r.size), *cells(r.costs), *(cells(direct[r.label].costs) if direct else [])]
        rows.append(row + ([str(chosen.get(r.label, "-"))] if chosen else []))
    return rows


def shown(rows: Sequence[Sequence[str]], form: str) -> str:
    """The rows as ``table``, ``csv`` or ``markdown``."""
    out = io.StringIO()
    if form == "csv":
        csv.writer(out, lineterminator="\n").writerows(rows)
    elif form == "markdown":
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        out.writelines(f"| {' | '.join(line)} |\n" for line in lines)
    else:
        made = Table(*rows[0])
        for row in rows[1:]:
            made.add_row(*row)
        Console(file=out, width=160).print(made)
    return out.getvalue()


def heat_map(rated: Sequence[Rated]) -> bytes:
    """PNG: kinds of sites against blocks, colour the logarithm of the score at the fewest bits."""
    from matplotlib.figure import Figure

    bits = min(bits for r in rated for bits in r.costs)
    cells: dict[str, dict[str, float]] = {}
    for r in rated:
        numbers = re.findall(r"\.(\d+)(?=\.|$)", r.label)
        row = re.sub(r"\.\d+(?=\.|$)", "", r.label)
        for prefix in ("layers.residual_group.blocks.", "layers.residual_group.layers."):
            row = row.removeprefix(prefix)
        cells.setdefault(row, {})[".".join(numbers[:2])] = math.log10(max(r.costs.get(bits, math.nan), 1e-30))
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    values = [[row.get(column, math.nan) for column in columns] for row in cells.values()]
    figure = Figure(figsize=(2 + 0.35 * len(columns), 1.5 + 0.2 * len(cells)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
    axes.set_yticks(range(len(cells)), list(cells), fontsize=6)
    figure.colorbar(image, label=f"log10 of the score at {bits} bits")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    return content.getvalue()


def with_bits(opt: Mapping, net: torch.nn.Module, chosen: Mapping[str, int], name: str) -> dict:
    """An option file's contents with an override for each site whose width differs from its own.

    Args:
        opt: contents of the option file.
        net: its network.
        chosen: label of a site -> bits.
        name: of the new file.
    """
    made = deepcopy(dict(opt))
    made.pop("plugin", None)  # ``render`` writes it
    quant = made["network_g"]["quant"]
    spec = apply_policy(QuantSpec.from_dict(quant), network_info(net).behind_scan)
    overrides = dict(quant.get("overrides") or {})
    for placed in sites_to_rate(net):
        site = placed.site
        bits = chosen.get(site.label)
        if bits is not None and bits != placed.quantizer.bits:
            own = spec.resolve(site).to_dict() | {"bits": bits}
            overrides[site.name] = {**overrides.get(site.name, {}), site.kind: own}
    quant["overrides"] = overrides
    made["name"] = name
    return made


def run(args: argparse.Namespace) -> str:
    """Rate, write what was asked for, and return the table.

    Raises:
        SensitivityError: an average without a file to write, a width for a site that its quantizer cannot have.
    """
    if args.average is not None and args.output is None:
        raise SensitivityError("--average needs --output: the option file that gets the overrides")
    if args.abmp and (args.average is not None or args.output is None):
        raise SensitivityError("--abmp needs --output, and has an average of its own: leave --average out")
    if args.plot is not None and find_spec("matplotlib") is None:
        raise SensitivityError("--plot needs matplotlib: pip install matplotlib (extra: plot)")
    opt = read_options(args.opt, ("network_g",), quantized=True)
    torch.manual_seed(args.seed)
    net = build_network(opt["network_g"]).eval()
    if args.checkpoint:
        load_full_precision(net, args.checkpoint, args.param_key)
    images = list(middles(args.images, network_info(net).channels, args.middle, args.middle, args.count))
    widths = sorted(set(args.bits))
    rated = [r for r in scores(net, images, widths, args.seed) if args.kind in ("all", r.kind)]
    if not rated:
        listed = ", ".join(map(str, widths))
        raise SensitivityError(
            f"{args.opt}: nothing of kind {args.kind} is quantized with a quantizer of {listed} bits; see tools.placement"
        )
    direct = {r.label: r for r in measured(net, images, widths)} if args.direct else {}
    chosen: dict[str, int] = {}
    if args.average is not None:
        chosen = allocate([direct.get(r.label, r) for r in rated], args.average)
    elif args.abmp:
        chosen = by_blocks(net, images)
    if chosen:
        made = with_bits(opt, net, chosen, args.output.stem)
        QuantSpec.from_dict(made["network_g"]["quant"])  # a width that a quantizer cannot have is named here
        write_text(args.output, render(made))
        reached = average_bits(rated, chosen)
        asked = "" if args.average is None else f" of at most {args.average:g}"
        sys.stderr.write(f"{args.output}: an average of {reached:.2f} bits{asked} at {len(chosen)} sites\n")
    if args.plot is not None:
        write_bytes(args.plot, heat_map(rated))
    return shown(table(rated, direct, chosen), args.form)
