"""Watching a network run: which products each layer computes, and how many bits their operands have.

Bits are followed through the run: from the output of a quantizer through everything that only moves values (views,
copies, permutations, look-ups, padding) to the product that reads them. What no quantizer produced has 32 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..layers.sites import SiteModule, quantizers_of

FULL = 32

_aten = torch.ops.aten
_OPERANDS = {  # operator -> positions of the activation and of the weight (of two activations: left and right)
    _aten.convolution: (0, 1),
    _aten.mm: (0, 1),
    _aten.addmm: (1, 2),
    _aten.bmm: (0, 1),
    _aten.baddbmm: (1, 2),
}
_MOVES = {  # operators that copy values without changing them; views need no entry, they share their storage
    _aten.clone,
    _aten._to_copy,
    _aten._unsafe_view,
    _aten.cat,
    _aten.constant_pad_nd,
    _aten.embedding,
    _aten.flip,
    _aten.gather,
    _aten.index,
    _aten.index_select,
    _aten.pixel_shuffle,
    _aten.pixel_unshuffle,
    _aten.reflection_pad2d,
    _aten.repeat,
    _aten.replication_pad2d,
    _aten.roll,
}


@dataclass(frozen=True)
class Product:
    """Multiplications of one kind: ``macs`` of them, of a ``weight``-bit with an ``act``-bit operand."""

    macs: int
    weight: int = FULL
    act: int = FULL


def scan_products(x: Tensor, a: Tensor, bits: dict[str, int], has_d: bool) -> tuple[Product, ...]:
    """Multiplications of ``ops.ss2d_scan``.

    Args:
        x: (B, H, W, D) shared by the directions, or (B, H, W, K, D).
        a: (K, D, N).
        bits: Widths of ``x``, ``dt`` (after softplus), ``A``, ``B``, ``C`` and ``D``.
        has_d: Whether there is a skip weight D.
    """
    positions = prod(x.shape[:3]) * a.shape[0] * a.shape[1]
    states = positions * a.shape[2]
    products = [
        Product(states, bits["A"], bits["dt"]),
        Product(states),  # exp(dt A) with h
        Product(positions, bits["dt"], bits["x"]),
        Product(states, bits["B"], FULL),
        Product(states, bits["C"], FULL),
    ]
    return (*products, Product(positions, bits["D"], bits["x"])) if has_d else tuple(products)


class Recorder(TorchDispatchMode):
    """Counts the products of every layer and follows bits from quantizers to products."""

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[str, list[Product]] = {}
        self.stack: list[str] = []
        self.parts: dict[str, str] = {}  # name of a module with raw sites -> operation that is running
        # storage -> bits. Keyed on storages, which views share; held, so that an address is not used twice
        self._bits: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def mark(self, tensor: Tensor, bits: int) -> None:
        """Remember that the values of a tensor have ``bits`` bits."""
        storage = tensor.untyped_storage()
        self._bits[storage._cdata] = (storage, bits)

    def bits_of(self, tensor: object) -> int:
        """Bits of a tensor's values; 32 unless they come from a quantizer."""
        if not isinstance(tensor, Tensor):
            return FULL
        return self._bits.get(tensor.untyped_storage()._cdata, (None, FULL))[1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet is torch.ops.qmambair.ss2d_scan:
            self._add(self._scan(func, args, kwargs), part="scan")
        elif packet in flop_registry:
            macs = flop_registry[packet](*args, **kwargs, out_val=out) // 2
            operands = [args[i] for i in _OPERANDS.get(packet, ())] or [None, None]  # fused attention: 32 bits
            act, weight = map(self.bits_of, operands)
            self._add((Product(macs, weight, act),))
        elif isinstance(out, Tensor) and out.is_floating_point():
            sources = [t for t in _tensors(args) if t.is_floating_point()]
            same = any(t.untyped_storage()._cdata == out.untyped_storage()._cdata for t in sources)
            if same and func._schema.is_mutable:
                self.mark(out, FULL)
            elif not same and packet in _MOVES and sources:
                self.mark(out, max(map(self.bits_of, sources)))
        return out

    def _scan(self, func, args: tuple, kwargs: dict) -> tuple[Product, ...]:
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        bits = {name: self.bits_of(given[name]) for name in ("x", "A", "B", "C", "D")}
        computed = given["softplus"] or given["delta_bias"] is not None
        bits["dt"] = FULL if computed else self.bits_of(given["delta"])
        return scan_products(given["x"], given["A"], bits, given["D"] is not None)

    def _add(self, products: Iterable[Product], part: str | None = None) -> None:
        name = self.stack[-1] if self.stack else ""
        part = self.parts.get(name, part)  # a scan without sites of its own counts with its module's other scan
        self.products.setdefault(name if part is None else f"{name}.{part}".lstrip("."), []).extend(products)


def _tensors(values: Iterable[object]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def watch(net: nn.Module, recorder: Recorder) -> None:
    """Let a network tell the recorder which layer runs, and its quantizers hand on their input as b-bit values."""

    def pass_on(x: Tensor, bits: int) -> Tensor:
        values = x.clone()
        recorder.mark(values, bits)
        return values

    def enter(name: str, *_) -> None:
        recorder.stack.append(name)

    def leave(*_) -> None:
        recorder.stack.pop()

    for quantizer in quantizers_of(net).values():
        quantizer.forward = functools.partial(pass_on, bits=quantizer.bits)
    for name, module in net.named_modules():
        module.register_forward_pre_hook(functools.partial(enter, name))
        module.register_forward_hook(leave)
        if isinstance(module, SiteModule):
            operations = {site.slot: site.operation for site in module.quantization_sites()}
            module.site = functools.partial(_at_site, recorder.parts, name, operations, module.site)
            # these methods are called without the module's forward, so the module that runs is its owner
            for method in module.entry_points:
                setattr(module, method, functools.partial(_inside, recorder, name, getattr(module, method)))


def _at_site(parts: dict[str, str], name: str, operations: dict, original, site: str, *args, **kwargs) -> Tensor:
    parts[name] = operations[f"quantizers.{site}"]
    return original(site, *args, **kwargs)


def _inside(recorder: Recorder, name: str, original, *args, **options):
    recorder.stack.append(name)
    try:
        return original(*args, **options)
    finally:
        recorder.stack.pop()
        recorder.parts.pop(name, None)
