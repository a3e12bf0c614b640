"""Counting the parameters, multiplications and bit operations of a network while it runs.

The network is built and run on torch's meta device: every operator is executed with its true shapes, nothing is
computed and no memory is used. Products are counted where torch dispatches them, so a raw parameter that no layer
holds (a projection of the scan) or a product of two feature maps (attention) counts like any layer.

Counted, in multiply-accumulates (MACs): convolutions, matrix products and the selective scan. For each pixel,
direction and channel the scan ``h <- exp(dt A) h + (dt x) B, y = C h + D x`` multiplies (N = states)::

    dt A: N    exp(dt A) h: N    dt x: 1    (dt x) B: N    C h: N    D x: 1        4 N + 2 together

Not counted: additions on their own, exponentials and other functions, element-wise products (norms, gates, residual
scales, channel attention), pooling, and the arithmetic of the quantizers.

A product of b1-bit and b2-bit operands is b1 * b2 bit operations; what no quantizer produced has 32 bits (see
``complexity_record.py``). In the scan, dt = softplus(delta + dt_bias), the state h and all intermediate products have
32 bits whatever the quantizers of its inputs are (placement of Q-MambaIR).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.archs import build_network
from torch import nn

from ..artifacts.packed import SizeReport, save_packed
from ..layers.info import network_info
from ..layers.placement import quantizer_scalars
from ..layers.policy import remark
from ..layers.sites import parameter_sites, quantizers_of, sites_of
from ..layers.transforms import transforms_of
from ..quantizers.transform_spec import without_increments
from .complexity_record import FULL, Product, Recorder, watch


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer, or of several equal ones after :func:`collapse`.

    Attributes:
        name: Dotted name; the operations of a module S with raw parameters are S.x_proj, S.scan and so on.
        kind: Class of the layer in the full-precision network, or the part of the scan.
        parameters: Number of parameters.
        parameter_bits: Their bits, added up.
        products: Its multiplications, one entry per pair of widths.
        count: Layers that the row stands for.
    """

    name: str
    kind: str
    parameters: int
    parameter_bits: int
    products: tuple[Product, ...]
    count: int = 1

    @property
    def weighted_parameters(self) -> float:
        """Parameters times bits / 32."""
        return self.parameter_bits / FULL

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(p.macs for p in self.products)

    @property
    def full_precision_macs(self) -> int:
        """Those with an operand of 32 bits."""
        return sum(p.macs for p in self.products if max(p.weight, p.act) == FULL)

    @property
    def weighted_macs(self) -> float:
        """Multiply-accumulates times (bits of the wider operand) / 32, the papers' way to count."""
        return sum(p.macs * max(p.weight, p.act) for p in self.products) / FULL

    @property
    def bit_operations(self) -> int:
        """Sum of (bits of one operand) * (bits of the other)."""
        return sum(p.macs * p.weight * p.act for p in self.products)


@dataclass(frozen=True)
class Complexity:
    """Costs of a network for one input.

    Attributes:
        network: Its registered type, and what a table must say of its ``quant`` settings.
        input_shape: (1, C, H, W) as the network was run.
        output_shape: Of its result.
        rows: Every layer with parameters or products, in module order.
        quantizer_parameters: Trainable scalars of the quantizers, at 32 bits; not part of the rows.
        packed: Sizes of the packed file (see ``artifacts/packed.py``), None for a network without quantizers.
    """

    network: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    rows: tuple[LayerCost, ...]
    quantizer_parameters: int
    packed: SizeReport | None

    def total(self, attribute: str) -> float:
        """Sum of an attribute of the rows, such as ``macs``."""
        return sum(getattr(row, attribute) for row in self.rows)


def _rows(net: nn.Module, products: dict[str, list[Product]]) -> list[LayerCost]:
    parameter_bits = {site.parameter: site.quantizer.bits for site in parameter_sites(net)}
    hidden = tuple(f"{name}." for name in quantizers_of(net))
    held: dict[str, list[tuple[int, int]]] = {}  # layer -> (parameters, bits)
    kinds: dict[str, str] = {}
    seen = set()
    for name, module in net.named_modules():
        if f"{name}.".startswith(hidden):
            continue
        layers = [name]
        operations = {site.parameter: site.operation for site in sites_of(module)}
        for attribute, parameter in module.named_parameters(recurse=False):
            layer = ".".join(part for part in (name, operations.get(attribute)) if part)
            layers.append(layer)
            if id(parameter) not in seen:  # a parameter that two layers share counts once
                seen.add(id(parameter))
                full_name = f"{name}.{attribute}".lstrip(".")
                held.setdefault(layer, []).append((parameter.numel(), parameter_bits.get(full_name, FULL)))
        for layer in layers:
            part = layer[len(name) :].lstrip(".")
            kinds.setdefault(layer, part or type(module).__name__.removeprefix("Quant"))
    rows = []
    for layer, kind in kinds.items():
        parameters, used = held.get(layer, []), products.get(layer, [])
        if not parameters and not used:
            continue
        counts = sum(count for count, _ in parameters), sum(count * bits for count, bits in parameters)
        rows.append(LayerCost(layer or "(network)", kind, *counts, _merged(used)))
    missing = products.keys() - kinds.keys()
    if missing:
        raise RuntimeError(f"products of unknown layers: {', '.join(sorted(missing))}")
    return rows


def _merged(products: Iterable[Product]) -> tuple[Product, ...]:
    """One entry for each pair of widths."""
    macs: dict[tuple[int, int], int] = {}
    for p in products:
        macs[p.weight, p.act] = macs.get((p.weight, p.act), 0) + p.macs
    return tuple(Product(count, *widths) for widths, count in sorted(macs.items()))


def collapse(rows: Iterable[LayerCost]) -> list[LayerCost]:
    """Merge rows that differ only in the indices of their names; all figures add up."""
    merged: dict[tuple, LayerCost] = {}
    for row in rows:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", row.name)
        key = (pattern, row.kind, tuple((p.weight, p.act) for p in row.products))
        old = merged.get(key)
        merged[key] = (
            row
            if old is None
            else LayerCost(
                pattern,
                row.kind,
                old.parameters + row.parameters,
                old.parameter_bits + row.parameter_bits,
                _merged(old.products + row.products),
                old.count + row.count,
            )
        )
    return list(merged.values())


def packed_size(network: dict) -> SizeReport:
    """Write the packed checkpoint of a network and look at the file.

    Its size does not depend on the values in it, so the network is taken as its constructor leaves it.

    Args:
        network: A ``network_g`` block with ``quant``.

    Raises:
        ModuleNotFoundError: safetensors is not installed (extra ``export``).
    """
    net = build_network(dict(network))
    for quantizer in quantizers_of(net).values():
        quantizer.initialized.fill_(True)
    with tempfile.TemporaryDirectory() as folder:
        return save_packed(net, network, Path(folder) / "packed.safetensors")


def measure(network: dict, height: int, width: int, *, packed: bool = True) -> Complexity:
    """Count what a network costs for one image.

    Args:
        network: A ``network_g`` block; plain data.
        height: Of the network's input, in pixels; raised to the next multiple the network needs.
        width: As ``height``.
        packed: Also write a packed checkpoint and report its size.

    Returns:
        The counts.

    Raises:
        ValueError: A height or width below 1, or what the network's constructor raises.
        ModuleNotFoundError: ``packed`` without safetensors (extra ``export``).
    """
    if height < 1 or width < 1:
        raise ValueError(f"the input must have at least 1 x 1 pixels, got {width} x {height}")
    network = without_increments(network)  # which are part of the weights where the network is used
    with torch.device("meta"):
        net = build_network(dict(network))
    for transform in transforms_of(net).values():
        transform.fold_weight()
    info = network_info(net)
    multiple = info.size_multiple
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    quantized = bool(quantizers_of(net))
    # training mode: in evaluation MambaIRv2 seeds a generator, which the meta device has not. Same products either way
    net.train()
    recorder = Recorder()
    watch(net, recorder)
    image = torch.empty(1, info.channels, height, width, device="meta")
    with torch.no_grad(), recorder:
        out = net(image)
    return Complexity(
        network["type"] + remark(network.get("quant", {})),
        tuple(image.shape),
        tuple(out.shape),
        tuple(_rows(net, recorder.products)),
        quantizer_scalars(net),
        packed_size(network) if packed and quantized else None,
    )
