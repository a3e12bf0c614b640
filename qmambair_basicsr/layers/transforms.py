"""Transforms: what the input and the weight of a product go through before their quantizers.

A transform replaces ``W x`` by ``(W T^-1)(T x)``, which is the same before quantization and easier to quantize, or adds a
trainable increment to the weight. It sits in a slot of its own, so parameters keep their names: ``in_proj.transform``
beside ``in_proj.weight``, ``S.transforms.PART`` for a part of a module with raw weights (a scan's projections).

=========== ================================ ======================= ==========================================
Smoothing   x / s                            W * s                   SmoothQuant, MambaQuant, PTQ4VM
Rotation    M x, M orthogonal                W M^T                   QuaRot, Quamba, MambaQuant
Offset      x + o, and - o once quantized    W                       per-channel offsets (LSQ+)
LowRank     x                                W + B A                 SPR2Q
=========== ================================ ======================= ==========================================

:func:`attach` puts transforms (``Chain``: several) into a network, :func:`merge` (``merging.py``) takes them out again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..strict import unknown
from .sites import sites_of, transform_of


class TransformError(ValueError):
    """A transform does not fit its place, or cannot be merged; the message names the place."""


@dataclass(frozen=True)
class Layout:
    """Where the input channels of a product lie.

    Attributes:
        name: dotted name of the place.
        channels: C, of the input.
        dim: their dimension in the input.
        weight_shape: of the weight.
        weight_dim: their dimension in the weight, which holds C / groups.
        groups: of a convolution.
        stacked: the weight is a stack of K matrices, and the input has them too, (..., K, C).
    """

    name: str
    channels: int
    dim: int
    weight_shape: tuple[int, ...]
    weight_dim: int
    groups: int = 1
    stacked: bool = False


class Transform(nn.Module):
    """Base class; this one does nothing. Its layout is set when it is attached.

    Attributes:
        layout: place that it is attached to.
        folded: the weight's side is part of the weight already.
        changes_input: whether :meth:`enter` and :meth:`leave` do anything.
        leaves: whether :meth:`leave` does.
        diagonal: every channel of the input is changed by itself.
    """

    layout: Layout
    folded: bool = False
    changes_input: bool = False
    leaves: bool = False
    diagonal: bool = True

    def bind(self, layout: Layout) -> None:
        """Take a place.

        Raises:
            TransformError: it does not fit there.
        """
        self.check(layout)
        self.layout = layout

    def check(self, layout: Layout) -> None:
        """Raise TransformError where it does not fit."""

    def enter(self, x: Tensor) -> Tensor:
        """The input as its quantizer gets it."""
        return x

    def leave(self, x: Tensor) -> Tensor:
        """The quantized input as the product gets it."""
        return x

    def on_weight(self, weight: Tensor) -> Tensor:
        """The weight as its quantizer gets it."""
        return weight if self.folded else self.change(weight)

    def change(self, weight: Tensor) -> Tensor:
        """See :meth:`on_weight`, for a weight that nothing was folded into."""
        return weight

    def original(self, weight: Tensor) -> Tensor:
        """The weight that :meth:`on_weight` returns this one for; of transforms that stay in a network for good."""
        raise TransformError(f"{self.layout.name}: the weight in front of {type(self).__name__} is not known")

    def fold_weight(self) -> None:
        """From now on the weight is what :meth:`on_weight` returned, and nothing here is trained."""
        self.folded = True
        self.requires_grad_(False)

    def rows(self, tensor: Tensor, dim: int) -> Tensor:
        """The linear part of :meth:`enter` along another dimension of another tensor, such as rows of a weight."""
        return tensor

    def constant(self) -> Tensor | None:
        """Offset that :meth:`enter` adds and :meth:`leave` subtracts, (C,); None for none."""
        return None


class Smoothing(Transform):
    """``x / s`` and ``W * s``.

    Args:
        scale: s > 0, (C,).
        learned: whether it is trained.
    """

    changes_input = True

    def __init__(self, scale: Tensor, learned: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.detach().clone(), requires_grad=learned)

    def check(self, layout: Layout) -> None:
        _require_channels(self, self.scale, layout)
        if not bool((self.scale > 0).all()):
            raise TransformError(f"{layout.name}: the scales of Smoothing must be positive")

    def enter(self, x: Tensor) -> Tensor:
        return x / _along(self.scale, x, self.layout.dim)

    def change(self, weight: Tensor) -> Tensor:
        groups = self.layout.groups
        grouped = weight.unflatten(0, (groups, -1))  # (G, O / G, C / G, ...)
        dim = self.layout.weight_dim + (1 if self.layout.weight_dim >= 0 else 0)
        shape = [1] * grouped.ndim
        shape[0], shape[dim] = groups, -1
        return (grouped * self.scale.to(weight.dtype).view(shape)).flatten(0, 1)

    def rows(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor / _along(self.scale, tensor, dim)


class Rotation(Transform):
    """``M x`` and ``W M^T``.

    Args:
        matrix: M, orthogonal, (C, C), or (K, C, C) for an input that K directions have each for themselves.

    Raises:
        ValueError: not orthogonal up to the rounding of its precision.
    """

    changes_input = True
    diagonal = False

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        matrix = matrix.detach().clone()
        error = (matrix @ matrix.mT - torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)).abs().max()
        allowed = 10 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        if not bool(error <= allowed):
            raise ValueError(f"Rotation: M M^T differs from the identity by {error:.1e}, more than {allowed:.1e}")
        self.register_buffer("matrix", matrix)

    def check(self, layout: Layout) -> None:
        if layout.groups > 1:
            raise TransformError(f"{layout.name}: a rotation mixes channels, which {layout.groups} groups keep apart")
        wanted = [(layout.channels, layout.channels)]
        if layout.stacked:
            wanted.append((layout.weight_shape[0], *wanted[0]))
        if tuple(self.matrix.shape) not in wanted:
            shapes = " or ".join(map(str, wanted))
            raise TransformError(f"{layout.name}: a rotation must be {shapes} here, not {tuple(self.matrix.shape)}")

    def enter(self, x: Tensor) -> Tensor:
        matrix = self.matrix.to(x.dtype)
        if matrix.ndim == 3:  # (..., K, C)
            return (matrix @ x.unsqueeze(-1)).squeeze(-1)
        return self.rows(x, self.layout.dim)

    def change(self, weight: Tensor) -> Tensor:
        matrix = self.matrix.to(weight.dtype)
        if matrix.ndim == 3:
            return weight @ matrix.mT
        dim = self.layout.weight_dim
        return (weight.movedim(dim, -1) @ matrix.mT).movedim(-1, dim)

    def rows(self, tensor: Tensor, dim: int) -> Tensor:
        matrix = self.matrix.to(tensor.dtype)
        if matrix.ndim == 3:
            return matrix @ tensor
        return (tensor.movedim(dim, -1) @ matrix.mT).movedim(-1, dim)


class Offset(Transform):
    """``x + o`` in front of the quantizer, ``- o`` behind it.

    Args:
        offset: o, (C,).
        learned: whether it is trained.
    """

    changes_input = True
    leaves = True

    def __init__(self, offset: Tensor, learned: bool = False) -> None:
        super().__init__()
        self.offset = nn.Parameter(offset.detach().clone(), requires_grad=learned)

    def check(self, layout: Layout) -> None:
        _require_channels(self, self.offset, layout)

    def enter(self, x: Tensor) -> Tensor:
        return x + _along(self.offset, x, self.layout.dim)

    def leave(self, x: Tensor) -> Tensor:
        return x - _along(self.offset, x, self.layout.dim)

    def constant(self) -> Tensor:
        return self.offset


class LowRank(Transform):
    """``W + B A``, trained while W may be frozen.

    Args:
        shape: of the weight; a stack (K, O, C) gets K increments, a convolution's kernels are rows.
        rank: r.
        generator: of the starting values.

    A starts uniform in +-sqrt(6 / r) and B at 0, as in SPR2Q's release.
    """

    def __init__(self, shape: tuple[int, ...], rank: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"LowRank: rank must be at least 1, got {rank}")
        leading, rows, columns = (shape[:1], *shape[1:]) if len(shape) == 3 else ((), shape[0], math.prod(shape[1:]))
        self.shape, bound = tuple(shape), math.sqrt(6 / rank)
        device = None if generator is None else generator.device
        start = torch.rand(*leading, rank, columns, generator=generator, device=device)
        self.A = nn.Parameter((2 * start - 1) * bound)
        self.B = nn.Parameter(torch.zeros(*leading, rows, rank))

    def check(self, layout: Layout) -> None:
        if self.shape != layout.weight_shape:
            raise TransformError(f"{layout.name}: LowRank of {self.shape} at a weight of {layout.weight_shape}")

    def change(self, weight: Tensor) -> Tensor:
        return weight + (self.B @ self.A).view(weight.shape).to(weight.dtype)


class Chain(Transform):
    """Transforms one after the other."""

    def __init__(self, *parts: Transform) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.changes_input = any(p.changes_input for p in parts)
        self.leaves, self.diagonal = any(p.leaves for p in parts), all(p.diagonal for p in parts)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        for part in self.parts:
            part.bind(layout)

    def enter(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part.enter(x)
        return x

    def leave(self, x: Tensor) -> Tensor:
        for part in reversed(self.parts):
            x = part.leave(x)
        return x

    def change(self, weight: Tensor) -> Tensor:
        for part in self.parts:
            weight = part.on_weight(weight)
        return weight

    def fold_weight(self) -> None:
        super().fold_weight()
        for part in self.parts:
            part.fold_weight()


@dataclass(frozen=True)
class Place:
    """A product whose input and weight have sites.

    Attributes:
        owner: layer, or module with raw weights.
        part: empty for a layer.
        parameter: name of the weight in ``owner``.
        weight_slot: of the weight's quantizer.
        layout: of its channels.
    """

    owner: nn.Module
    part: str
    parameter: str
    weight_slot: str
    layout: Layout

    @property
    def weight(self) -> nn.Parameter:
        """The weight."""
        return getattr(self.owner, self.parameter)

    @property
    def transform(self) -> Transform | None:
        """The attached transform, if any."""
        return transform_of(self.owner, self.part)

    def set_transform(self, transform: Transform | None) -> None:
        """Attach, or take away."""
        if not self.part:
            self.owner.transform = transform
        else:
            self.owner.set_transform(self.part, transform)


def places(net: nn.Module) -> dict[str, Place]:
    """Dotted name -> every product of a prepared network that a transform can be attached to, in module order.

    Those whose weight is computed from a parameter (``Site.derived``) are left out.
    """
    found = {}
    for name, module in net.named_modules():
        parts: dict[str, dict] = {}
        for site in sites_of(module):
            if site.operand:
                parts.setdefault(site.part, {})[site.operand] = site.within(name)
        for part, operands in parts.items():
            if set(operands) != {"weight", "act"} or "transform" + ("s" if part else "") not in module._modules:
                continue
            weight, act = operands["weight"], operands["act"]
            if weight.derived is not None:  # a logarithm, say, which cannot hold every transformed weight
                continue
            stacked = part in getattr(module, "stacked_inputs", ())
            dim = -1 if part else 1
            layout = Layout(
                act.name, act.channels, act.channel_dim, weight.shape, dim, getattr(module, "groups", 1), stacked
            )
            found[act.name] = Place(module, part, weight.parameter, weight.slot, layout)
    return found


def attach(net: nn.Module, transforms: Mapping[str, Transform]) -> None:
    """Put transforms into a network, in place; one that is there already is followed by the new one.

    Args:
        net: made by ``prepare``.
        transforms: dotted name of a place (see :func:`places`) -> transform.

    Raises:
        TransformError: no such place, or a transform that does not fit there; nothing is attached then.
    """
    known = places(net)
    for name, transform in transforms.items():
        if name not in known:
            raise TransformError(unknown("attach", "place of a transform", name, known))
        transform.check(known[name].layout)
    for name, transform in transforms.items():
        place = known[name]
        weight, before = place.weight, place.transform
        transform.to(weight.device, weight.dtype)
        joined = transform if before is None else Chain(before, transform)
        joined.bind(place.layout)
        place.set_transform(joined.train(place.owner.training))


def transforms_of(net: nn.Module) -> dict[str, Transform]:
    """Dotted name of a place -> transform attached to it."""
    return {name: place.transform for name, place in places(net).items() if place.transform is not None}


def _require_channels(transform: Transform, tensor: Tensor, layout: Layout) -> None:
    if tuple(tensor.shape) != (layout.channels,):
        kind, shape = type(transform).__name__, tuple(tensor.shape)
        raise TransformError(f"{layout.name}: {kind} must have ({layout.channels},) values here, not {shape}")


def _along(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    """View of a vector that lies along a dimension of x, in its type."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return vector.to(x.dtype).view(shape)
