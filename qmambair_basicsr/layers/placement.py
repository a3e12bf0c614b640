"""Describing which quantizer sits where in a network, and how many scalars it covers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from ..archs.ss2d import ScanParameters
from ..quantizers import Quantizer
from .quant_layers import QuantConv2d, QuantEmbedding, QuantLinear
from .quant_matmul import QuantMatMul
from .quant_scan import PROJECTION_SITES, SCAN_SITES

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
    """List every module that holds parameters, and every quantized product, with what quantizes it.

    Scan inputs that are parameters (A, D, dt_bias) carry their quantizer in the weight column, the others (u, delta,
    B, C) in the activation column. Parameters of the quantizers themselves are not counted.

    Args:
        net (nn.Module): Any network, prepared or not.

    Returns:
        list[PlacementRow]: Rows in module order.
    """
    rows = []
    for name, module in net.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, QuantLinear | QuantConv2d):
            bias = 0 if module.bias is None else module.bias.numel()
            rows.append(_row(name, module.weight_quantizer, module.act_quantizer, module.weight.numel(), bias))
        elif isinstance(module, QuantEmbedding):
            rows.append(_row(name, module.weight_quantizer, None, module.weight.numel(), 0))
        elif isinstance(module, QuantMatMul):
            rows.append(_row(f"{name}.left", None, module.left_quantizer, 0, 0))
            rows.append(_row(f"{name}.right", None, module.right_quantizer, 0, 0))
        elif isinstance(module, ScanParameters) and module.quantizers is not None:
            rows.extend(_scan_rows(name, module))
        elif own and not _inside_quantizer(net, name):
            rows.append(_row(name, None, None, 0, own))
    return rows


def _inside_quantizer(net: nn.Module, name: str) -> bool:
    parts = name.split(".") if name else []
    return any(isinstance(net.get_submodule(".".join(parts[:i])), Quantizer) for i in range(1, len(parts) + 1))


def _scan_rows(name: str, scan: ScanParameters) -> list[PlacementRow]:
    quantizers = scan.quantizers
    weights = {"x_proj": scan.x_proj_weight, "dt_projs": scan.dt_projs_weight}
    parameters = {"A": scan.A_logs, "D": scan.Ds, "dt_bias": scan.dt_projs_bias}
    rows = [
        _row(f"{name}.{projection}", quantizers[weight_site], quantizers[act_site], weights[projection].numel(), 0)
        for projection, (weight_site, act_site) in PROJECTION_SITES.items()
    ]
    for site in SCAN_SITES:
        if site in parameters:
            rows.append(_row(f"{name}.{site}", quantizers[site], None, parameters[site].numel(), 0))
        else:
            rows.append(_row(f"{name}.{site}", None, quantizers[site], 0, 0))
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
