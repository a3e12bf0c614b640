"""A quantization site: one place of a network where a quantizer may sit.

A module says which sites it has (``quantization_sites()``), ``layers/sites.py`` walks a network and collects them, and
everything that asks where quantizers are reads these objects: ``prepare``, the placement table, packed files, export,
complexity. A quantizer is built for a site and keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor

KINDS = ("weight", "act", "scan", "attention", "routing", "state")
"""Keys of the ``quant:`` block, one for each kind of site."""

OPTIONAL_KINDS = ("attention", "routing", "state")
"""Kinds whose modules stay as they are where the settings do not quantize them (fused kernels need them so)."""

ROLES = ("weight", "act", "param")
"""Kinds of tensor a quantizer sees: a weight; an activation (dim 0 is the batch); a parameter behind an activation
quantizer, such as A or D of the scan (no batch dimension)."""


@dataclass(frozen=True)
class Derived:
    """How the tensor at a site follows from a parameter, and the way back.

    Attributes:
        value: parameter -> tensor at the site, such as the decay rates A = -exp(logarithms).
        parameter: tensor at the site -> parameter.
    """

    value: Callable[[Tensor], Tensor]
    parameter: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """One place where a quantizer may sit. Names are relative to the owner, the module that has the site.

    Attributes:
        kind: key of the ``quant:`` block that decides about it, one of ``KINDS``.
        role: one of ``ROLES``.
        channels: size of the channel dimension, for parameters per channel; None when unknown.
        channel_dim: index of the channel dimension, possibly negative; None when unknown.
        shape: of the parameter that is quantized; None for tensors computed from the input.
        copies: how many copies of the tensor the published network would quantize together. SS2D's u is quantized once
            here, on (B, H, W, D), where the release quantizes four stacked permutations of it; ``copies=4`` keeps the
            release's gradient scale 1/sqrt(numel * Qp).
        part: part of the owner that the site belongs to (``x_proj``, ``u``; ``q`` of a product); empty for the owner
            as a whole.
        operand: ``weight`` or ``act`` where a part has both, else empty.
        operation: which of the owner's computations reads the tensor (``x_proj``, ``scan``); empty where the owner
            computes one thing.
        slot: where the quantizer lives, ``weight_quantizer`` or ``quantizers.u``.
        parameter: attribute of the owner that holds the quantized parameter; None for tensors computed from the input.
        derived: how the tensor follows from ``parameter``; None where it is the parameter itself.
        owner: dotted name of the owner in its network; empty until :meth:`within`.
    """

    kind: str = "act"
    role: str = "act"
    channels: int | None = None
    channel_dim: int | None = None
    shape: tuple[int, ...] | None = None
    copies: int = 1
    part: str = ""
    operand: str = ""
    operation: str = ""
    slot: str = ""
    parameter: str | None = None
    derived: Derived | None = None
    owner: str = ""

    def __post_init__(self) -> None:
        for what, value, allowed in (("kind", self.kind, KINDS), ("role", self.role, ROLES)):
            if value not in allowed:
                raise ValueError(f"Site: unknown {what} {value!r}; allowed: {', '.join(allowed)}.")
        if self.copies < 1:
            raise ValueError(f"Site: copies must be at least 1, got {self.copies}.")

    @classmethod
    def of_weight(cls, channels: int | None = None, channel_dim: int = 0, **more) -> Site:
        """A weight, by default with its channels (rows) in the leading dimension."""
        return cls("weight", "weight", channels, None if channels is None else channel_dim, **more)

    @classmethod
    def of_act(cls, channels: int | None = None, channel_dim: int = -1, **more) -> Site:
        """An activation, by default with its channels last."""
        return cls("act", "act", channels, None if channels is None else channel_dim, **more)

    @classmethod
    def of_param(cls, channels: int | None = None, channel_dim: int = -1, **more) -> Site:
        """A parameter of a scan, by default with its channels last."""
        return cls("scan", "param", channels, None if channels is None else channel_dim, **more)

    @classmethod
    def of_role(cls, role: str, channels: int | None = None, channel_dim: int | None = None, **more) -> Site:
        """The site of a role with its usual kind.

        Raises:
            ValueError: an unknown role.
        """
        kind = "scan" if role == "param" else role
        return cls(kind, role, channels, channel_dim, **more)

    def within(self, owner: str) -> Site:
        """The same site of the module called ``owner``."""
        return replace(self, owner=owner)

    @property
    def name(self) -> str:
        """Dotted name of its part, which overrides are matched against (as well as ``owner``)."""
        return _dotted(self.owner, self.part)

    def matches(self, pattern: str) -> bool:
        """Whether a pattern of an override (``fnmatch``) means this site."""
        return fnmatchcase(self.name, pattern) or fnmatchcase(self.owner, pattern)

    @property
    def label(self) -> str:
        """Dotted name that tells the site from the others of its part, for messages and plots."""
        return _dotted(self.name, self.operand)

    @property
    def quantizer_path(self) -> str:
        """Dotted name of its quantizer."""
        return _dotted(self.owner, self.slot)

    @property
    def parameter_path(self) -> str | None:
        """Dotted name of its parameter."""
        return None if self.parameter is None else _dotted(self.owner, self.parameter)

    def value_of(self, parameter: Tensor) -> Tensor:
        """The tensor at the site, computed from its parameter."""
        return parameter if self.derived is None else self.derived.value(parameter)

    def parameter_of(self, value: Tensor) -> Tensor:
        """The parameter that leads to a tensor at the site; inverse of :meth:`value_of`."""
        return value if self.derived is None else self.derived.parameter(value)


ACTIVATION = Site("act", "act")
"""An activation of which nothing is known."""

WEIGHT = Site("weight", "weight")
"""A weight of which nothing is known."""


def _dotted(*parts: str) -> str:
    return ".".join(part for part in parts if part)
