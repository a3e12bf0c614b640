"""Transforms that a ``quant:`` block names (``quantizers/transform_spec.py``): rotations and low-rank increments of QAT.

They are built with the network. A :class:`Hadamard` rotation has nothing to learn and stays online; its one entry in a
checkpoint is the length of its blocks, so that a file cannot be mistaken for one of a network without it. An increment is
part of the weight in every checkpoint that is saved (:func:`ordinary_state`), which loads with and without the increment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..constants import ConstantBuffers
from ..quantizers.spec import SpecError
from ..quantizers.transform_spec import TransformSpec
from .hadamard import hadamard
from .sites import network_sites
from .transforms import Chain, Layout, LowRank, Place, Transform, TransformError, attach, places

_ORDER = re.compile(r"(?P<owner>.+)\.(transform|transforms\.(?P<part>\w+))\.order")


class Hadamard(ConstantBuffers, Transform):
    """Every block of neighbouring channels turned by the same ``H / sqrt(b)``, online; the weight is turned back.

    Args:
        order: b, for which a Hadamard matrix is known; it divides the number of channels.

    Raises:
        ValueError: no matrix is known for the order.
    """

    changes_input = True
    diagonal = False

    def __init__(self, order: int) -> None:
        super().__init__()
        matrix = hadamard(order)
        if matrix is None:
            raise ValueError(f"Hadamard: no matrix of order {order} is known (see hadamard.py)")
        self.length = order
        self.register_buffer("matrix", (matrix / math.sqrt(order)).float(), persistent=False)
        self.register_buffer("order", torch.tensor(order))

    def constant_buffers(self) -> dict[str, Tensor]:
        return {"order": torch.tensor(self.length, device="cpu")}

    def check(self, layout: Layout) -> None:
        if layout.groups > 1:
            raise TransformError(f"{layout.name}: a rotation mixes channels, which {layout.groups} groups keep apart")
        if layout.channels % self.length:
            raise TransformError(f"{layout.name}: {layout.channels} channels are no blocks of {self.length}")

    def enter(self, x: Tensor) -> Tensor:
        return self.rows(x, self.layout.dim)

    def change(self, weight: Tensor) -> Tensor:
        return self.rows(weight, self.layout.weight_dim)

    def original(self, weight: Tensor) -> Tensor:
        return weight if self.folded else self._turned(weight, self.layout.weight_dim, self.matrix)

    def rows(self, tensor: Tensor, dim: int) -> Tensor:
        return self._turned(tensor, dim, self.matrix.mT)

    def _turned(self, tensor: Tensor, dim: int, matrix: Tensor) -> Tensor:
        last = tensor.movedim(dim, -1)
        blocks = last if self.length == last.shape[-1] else last.unflatten(-1, (-1, self.length))
        return (blocks @ matrix.to(tensor.dtype)).reshape(last.shape).movedim(-1, dim)


def block_order(channels: int, block: int) -> int:
    """The largest order of a known Hadamard matrix that divides so many channels and is at most ``block`` (0: any)."""
    largest = min(block or channels, channels)
    return max(n for n in range(1, largest + 1) if channels % n == 0 and hadamard(n) is not None)


def attach_declared(net: nn.Module, specs: Iterable[TransformSpec]) -> None:
    """Put the transforms of a ``quant:`` block into a prepared network, in place.

    Raises:
        SpecError: a transform that fits no place that it is meant for.
    """
    for spec in specs:
        widths = {(p.site.name, p.site.operand): p.quantizer.bits for p in network_sites(net)}
        known = places(net)
        chosen = {}
        for name, place in known.items():
            made = _BUILDERS[spec.type](place, spec.options, widths) if spec.matches(name) else None
            if made is not None:
                chosen[name] = made
        if not chosen:
            names = sorted({f"*.{name.rpartition('.')[2]}" for name in known})
            raise SpecError(
                f"quant.transforms.{spec.type}.places: {', '.join(spec.places)} fit no quantized place that can have "
                f"one; there are {', '.join(names)}"
            )
        attach(net, chosen)


def _hadamard(place: Place, options: Mapping[str, int], widths: Mapping[tuple[str, str], int]) -> Transform | None:
    layout = place.layout
    if layout.groups > 1 or widths.get((layout.name, "act"), 32) == 32:
        return None
    order = block_order(layout.channels, options["block"])
    return Hadamard(order) if order > 1 else None


def _low_rank(place: Place, options: Mapping[str, int], widths: Mapping[tuple[str, str], int]) -> Transform | None:
    layout, rank = place.layout, options["rank"]
    if widths.get((layout.name, "weight"), 32) == 32:
        return None
    made = LowRank(layout.weight_shape, rank, torch.Generator(device="cpu").manual_seed(0))
    return made if rank < min(made.B.shape[-2], made.A.shape[-1]) else None


_BUILDERS = {"Hadamard": _hadamard, "LowRank": _low_rank}


def transform_keys(net: nn.Module) -> set[str]:
    """Keys of the state_dict that belong to transforms."""
    prefixes = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, Transform))
    return {key for key in net.state_dict() if prefixes and key.startswith(prefixes)}


def ordinary_state(net: nn.Module) -> dict[str, Tensor]:
    """The state_dict with trained increments as part of their weights, as a network without them has it."""
    state = net.state_dict()
    for weight, prefix, part, place in _increments(net):
        with torch.no_grad():
            state[weight] = part.change(place.weight)
        own = _own(prefix, part, place)
        state = {_shorter(key, prefix): value for key, value in state.items() if key not in own}
    return state


def with_increments(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An ordinary state as a network with increments loads it: these start anew and add nothing."""
    state = dict(state)
    for _, prefix, part, place in _increments(net):
        own = _own(prefix, part, place)
        if not own.keys().isdisjoint(state):
            continue
        if isinstance(place.transform, Chain):
            moved = {key: value for key, value in state.items() if key.startswith(prefix)}
            state = {key: value for key, value in state.items() if key not in moved}
            state |= {f"{prefix}parts.1.{key.removeprefix(prefix)}": value for key, value in moved.items()}
        state |= {key: torch.zeros_like(t) if key.endswith(".B") else t.detach() for key, t in own.items()}
    return state


def rotations_in(state: Mapping[str, Tensor]) -> tuple[set[str], dict[str, dict]]:
    """The keys of rotations in a checkpoint, and the ``transforms:`` entry that they stand for; empty without any."""
    places_, orders = {}, set()
    for key, tensor in state.items():
        found = _ORDER.fullmatch(key)
        if found and tensor.dtype == torch.int64 and tensor.numel() == 1 and not tensor.is_meta:
            places_[key] = found["owner"] + (f".{found['part']}" if found["part"] else "")
            orders.add(int(tensor))
    if not places_:
        return set(), {}
    return set(places_), {"Hadamard": {"block": max(orders), "places": sorted(places_.values())}}


def _own(prefix: str, part: LowRank, place: Place) -> dict[str, Tensor]:
    """Keys and tensors of an increment, whose place has a transform with this prefix."""
    first = f"{prefix}parts.0." if isinstance(place.transform, Chain) else prefix
    return {f"{first}{key}": tensor for key, tensor in part.named_parameters()}


def _shorter(key: str, prefix: str) -> str:
    """The key of what follows an increment, as it is where nothing precedes it."""
    return prefix + key.removeprefix(f"{prefix}parts.1.") if key.startswith(f"{prefix}parts.1.") else key


def _increments(net: nn.Module) -> Iterator[tuple[str, str, LowRank, Place]]:
    """Key of the weight, prefix of the transform's keys, increment and place; those that are folded left out."""
    for name, place in places(net).items():
        transform = place.transform
        part = transform.parts[0] if isinstance(transform, Chain) and len(transform.parts) <= 2 else transform
        if isinstance(part, LowRank) and not part.folded:
            owner = name.removesuffix(place.part) if place.part else f"{name}."
            prefix = f"{owner}transforms.{place.part}." if place.part else f"{owner}transform."
            yield f"{owner}{place.parameter}", prefix, part, place
