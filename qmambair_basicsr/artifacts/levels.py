"""How many levels a quantized network really uses; ``tools.verify --levels`` is its command.

``n`` bits are at most ``2^n`` values on each grid. What is counted are the values that leave a quantizer, while the network
restores images, so a quantizer that forgets to clamp its codes is found, whatever it says about itself. A grid is what its
codes share: one for a tensor, one for each channel or sample, as the tables of ``Quantizer.encode`` say. The values of a
grid that stays the same are counted over all images together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ..inference.image_sets import middles
from ..inference.networks import network_of
from ..inference.tiling import middle
from ..layers.convert import require_quantized
from ..layers.info import network_info
from ..layers.sites import PlacedSite, network_sites
from ..quantizers.encoded import AffineCodes, spread
from .reports import write_report

SCHEMA_VERSION = 1
REMEMBERED = 1024
"""Grids of a site whose values are kept from call to call; those beyond are counted call by call."""


@dataclass
class SiteLevels:
    """What was counted at a site.

    Attributes:
        label: dotted name of the site.
        kind: of the site.
        bits: that its quantizer states.
        values: most distinct values on one grid.
        codes: most distinct codes on one grid; for codes that are not affine, of the whole tensor.
        grids: most grids of one tensor.
        size: values of that tensor.
        faults: what is wrong -> in words, with the largest figure.
    """

    label: str
    kind: str
    bits: int
    values: int = 0
    codes: int = 0
    grids: int = 0
    size: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    _seen: dict[tuple[float, ...], set[float]] = field(default_factory=dict, repr=False)

    @property
    def allowed(self) -> int:
        """2^bits."""
        return 2**self.bits

    @torch.no_grad()
    def count(self, placed: PlacedSite, given: Tensor, result: Tensor) -> None:
        """Take one tensor in, as it enters and leaves the quantizer."""
        if not bool(torch.isfinite(result).all()):
            self.faults["finite"] = "a value is NaN or infinite"
            return
        encoded = placed.quantizer.encode(given)
        if not torch.equal(encoded.values().to(result.dtype).view_as(result), result):
            self.faults["decoded"] = "its values are not those of its codes"
        if not isinstance(encoded, AffineCodes):
            self.codes = max(self.codes, int(encoded.codes.unique().numel()))
            self.values, self.grids, self.size = max(self.values, self.codes), 1, result.numel()
        else:
            tables = [t for t in (encoded.scale, encoded.zero, encoded.bounds) if t is not None]
            keys, index = _grids(tables, result.shape)
            self.codes = max(self.codes, int(_distinct(encoded.codes, index).max()))
            if len(keys) >= self.grids:
                self.grids, self.size = len(keys), result.numel()
            self._count_values(result, keys, index)
        if self.values > self.allowed:
            self.faults["values"] = f"{self.values} values on one grid, {self.bits} bits are {self.allowed}"
        if self.codes > self.allowed:
            self.faults["codes"] = f"{self.codes} codes on one grid, {self.bits} bits are {self.allowed}"
        if self.grids > max(1, self.size // 2):
            self.faults["grids"] = f"{self.grids} grids for {self.size} values: one of its own quantizes nothing"

    def _count_values(self, result: Tensor, keys: list[tuple[float, ...]], index: Tensor) -> None:
        if len(keys) + len(self._seen) > REMEMBERED:
            self.values = max(self.values, int(_distinct(result, index).max()))
            return
        values, which = result.reshape(-1).unique(return_inverse=True)
        for pair in (index.reshape(-1) * len(values) + which).unique().tolist():
            seen = self._seen.setdefault(keys[pair // len(values)], set())
            seen.add(values[pair % len(values)].item())
            if len(seen) > 16 * self.allowed:  # enough to see that it is not quantized at all
                break
        self.values = max(self.values, max(map(len, self._seen.values())))


def _grids(tables: Sequence[Tensor], shape: torch.Size) -> tuple[list[tuple[float, ...]], Tensor]:
    """Each grid's scale, zero (and bounds), and for every value the index of its grid."""
    flat = [part for t in tables for part in (t if t.ndim > len(shape) else [t])]  # bounds are two tables
    parts = torch.broadcast_tensors(*(_fitting(t, shape) for t in flat))
    keys, index = torch.stack([p.reshape(-1) for p in parts], 1).unique(dim=0, return_inverse=True)
    return [tuple(key) for key in keys.tolist()], index.view(parts[0].shape).expand(shape)


def _fitting(table: Tensor, shape: torch.Size) -> Tensor:
    """A table that broadcasts to a shape, with as many dimensions."""
    table = spread(table.detach(), shape)
    return table.reshape(*[1] * (len(shape) - table.ndim), *table.shape)


def _distinct(tensor: Tensor, index: Tensor) -> Tensor:
    """Number of distinct values of a tensor on each grid."""
    values, which = tensor.reshape(-1).unique(return_inverse=True)
    return torch.bincount(torch.unique(index.reshape(-1) * len(values) + which) // len(values))


def count_levels(
    net: nn.Module, images: Sequence[Tensor], track: Callable[[Sequence], Sequence] = lambda images: images
) -> list[SiteLevels]:
    """Count the levels of every quantized site of a network.

    Args:
        net: quantized and initialised.
        images: (1, C, H, W) each, at least one.
        track: wraps the images, to show progress.

    Returns:
        One for each site with fewer than 32 bits, in module order. An activation that no image reached has a failure.
    """
    placed = [p for p in network_sites(net) if p.quantizer.bits != 32]
    found = {p.name: SiteLevels(p.site.label, p.site.kind, p.quantizer.bits) for p in placed}
    hooks = []

    def watch(p: PlacedSite):
        return lambda _, given, result: found[p.name].count(p, given[0], result)

    net.eval()
    try:
        with torch.no_grad():
            for p in placed:
                if p.site.parameter is None:
                    hooks.append(p.quantizer.register_forward_hook(watch(p)))
                else:
                    found[p.name].count(p, p.tensor(), p.quantizer(p.tensor()))
            for image in track(images):
                net(image)
    finally:
        for hook in hooks:
            hook.remove()
    for site in found.values():
        if not site.size and not site.faults:
            site.faults["reached"] = "no image reached it"
    return list(found.values())


def markdown(document: dict) -> str:
    """The report as people read it: a row for each kind and width, then what is wrong."""
    lines = [
        f"# Levels of {document['network']}, {document['checkpoint']}",
        "",
        f"{len(document['images'])} images. Distinct values on one grid, counted behind the quantizers; {document['full_precision']} "
        "quantizers of 32 bits were left out.",
        "",
        "| kind | bits | sites | levels allowed | most values | most codes | most grids of a tensor |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in document["sites"]:
        groups.setdefault((row["kind"], row["bits"]), []).append(row)
    for (kind, bits), rows in groups.items():
        most = [str(max(row[key] for row in rows)) for key in ("values", "codes", "grids")]
        lines.append(f"| {kind} | {bits} | {len(rows)} | {2**bits} | {' | '.join(most)} |")
    failures = [f"- {row['label']}: {reason}" for row in document["sites"] for reason in row["failures"]]
    lines += ["", f"Too many levels or other faults ({len(failures)}):" if failures else "No site has more.", *failures]
    return "\n".join(lines) + "\n"


def _fitted(image: Tensor, multiple: int) -> Tensor:
    """The middle of an image whose sides the network takes as they are."""
    height, width = (n // multiple * multiple for n in image.shape[-2:])
    if not height or not width:
        raise ValueError(f"an image of {image.shape[-1]}x{image.shape[-2]} is smaller than {multiple}x{multiple}")
    return middle(image, height, width)


def run(args: argparse.Namespace) -> int:
    """Count, print the report and write it where asked; returns the exit status: 1 where a site has too many levels.

    Raises:
        ValueError: files that do not fit together, no checkpoint, or a network that is not quantized.
    """
    if args.checkpoint is None:
        raise ValueError("--levels needs --checkpoint: the network whose levels are counted")
    if args.artifact:
        raise ValueError("--levels counts what a checkpoint uses; leave --artifact out, or give it without --levels")
    net = network_of(args.opt, args.checkpoint, args.param_key)
    require_quantized(net)
    info = network_info(net)
    side = args.middle or 2**30
    count = args.count or 2**30
    images = [_fitted(image, info.size_multiple) for image in middles(args.images, info.channels, side, side, count)]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        sites = count_levels(net, images, lambda given: progress.track(given, description="levels"))
    document = {
        "schema_version": SCHEMA_VERSION,
        "network": type(net).__name__,
        "checkpoint": Path(args.checkpoint).name,
        "images": [f"{image.shape[-1]}x{image.shape[-2]}" for image in images],
        "full_precision": sum(p.quantizer.bits == 32 for p in network_sites(net)),
        "sites": [
            {"label": s.label, "kind": s.kind, "bits": s.bits, "allowed": s.allowed, "values": s.values}
            | {"codes": s.codes, "grids": s.grids, "size": s.size, "failures": list(s.faults.values())}
            for s in sites
        ],
        "holds": not any(site.faults for site in sites),
    }
    write_report(document, markdown(document), args.output)
    return 0 if document["holds"] else 1
