"""Describing which quantizer sits where in a network, and how many scalars it covers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from ..quantizers import Quantizer
from .sites import PlacedSite, network_sites

FULL_PRECISION = "-"


@dataclass(frozen=True)
class PlacementRow:
    """One site, or several equal ones after :func:`collapse`.

    Attributes:
        module: Dotted name.
        weight: Type of the weight's quantizer, '-' for none.
        act: Type of the input's quantizer (or of the scan input itself), '-' for none.
        weight_bits: Bits of the weight, 32 without quantizer.
        act_bits: Bits of the activation, 32 without quantizer.
        quantized: Parameters stored with the row's bits.
        full_precision: Parameters of the row that stay in 32 bits (biases, norms, unquantized layers).
        count: Sites that the row stands for.
    """

    module: str
    weight: str
    act: str
    weight_bits: int
    act_bits: int
    quantized: int
    full_precision: int
    count: int = 1

    @property
    def bits(self) -> str:
        """'weight bits/activation bits', '-' where the row has no such operand or keeps full precision."""
        shown = [str(b) if b != 32 else FULL_PRECISION for b in (self.weight_bits, self.act_bits)]
        return "/".join(shown)


def _kind(quantizer: Quantizer | None) -> tuple[str, int]:
    if quantizer is None or quantizer.bits == 32:
        return FULL_PRECISION, 32
    return type(quantizer).__name__, quantizer.bits


def _row(module: str, weight: Quantizer | None, act: Quantizer | None, parameters: int, others: int) -> PlacementRow:
    (weight_type, weight_bits), (act_type, act_bits) = _kind(weight), _kind(act)
    if weight_bits == 32:
        parameters, others = 0, parameters + others
    return PlacementRow(module, weight_type, act_type, weight_bits, act_bits, parameters, others)


def placement(net: nn.Module) -> list[PlacementRow]:
    """List every module that holds parameters, and every part of one that has sites, with what quantizes it.

    Scan inputs that are parameters (A, D, dt_bias) carry their quantizer in the weight column, the others (u, delta,
    B, C) in the activation column. Parameters of the quantizers themselves are not counted.

    Args:
        net (nn.Module): Any network, prepared or not.

    Returns:
        list[PlacementRow]: Rows in module order.
    """
    placed: dict[nn.Module, list[PlacedSite]] = {}
    for found in network_sites(net):
        placed.setdefault(found.owner, []).append(found)
    inside = {part for module in net.modules() if isinstance(module, Quantizer) for part in module.modules()}
    rows = []
    for name, module in net.named_modules():
        own = 0 if module in inside else sum(p.numel() for p in module.parameters(recurse=False))
        if module in placed:
            rows.extend(_site_rows(name, placed[module], own))
        elif own:
            rows.append(_row(name, None, None, 0, own))
    return rows


def _site_rows(name: str, placed: list[PlacedSite], own: int) -> list[PlacementRow]:
    """Rows of a module: one for each of its parts, and one for its other parameters unless a part is the module."""
    parts: dict[str, list[PlacedSite]] = {}
    for found in placed:
        parts.setdefault(found.site.name, []).append(found)
    others = own - sum(math.prod(found.site.shape) for found in placed if found.site.parameter is not None)
    rows = []
    for part, operands in parts.items():
        weight = next((f for f in operands if f.site.parameter is not None), None)
        act = next((f.quantizer for f in operands if f.site.parameter is None), None)
        count = 0 if weight is None else math.prod(weight.site.shape)
        rows.append(_row(part, weight and weight.quantizer, act, count, others if part == name else 0))
    if others and name not in parts:
        rows.append(_row(name, None, None, 0, others))
    return rows


def collapse(rows: Iterable[PlacementRow]) -> list[PlacementRow]:
    """Merge rows that differ only in the indices of their names; parameters and counts add up."""
    merged: dict[PlacementRow, list[PlacementRow]] = {}
    for row in rows:
        key = replace(row, module=re.sub(r"\b\d+\b(?=\.|$)", "*", row.module), quantized=0, full_precision=0)
        merged.setdefault(key, []).append(row)
    return [
        replace(
            key,
            module=group[0].module if len(group) == 1 else key.module,
            quantized=sum(row.quantized for row in group),
            full_precision=sum(row.full_precision for row in group),
            count=len(group),
        )
        for key, group in merged.items()
    ]


def quantizer_scalars(net: nn.Module) -> int:
    """Number of trainable scalars that the quantizers themselves add."""
    return sum(p.numel() for m in net.modules() if isinstance(m, Quantizer) for p in m.parameters())
