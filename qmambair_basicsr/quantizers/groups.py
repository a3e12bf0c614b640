"""Groups of neighbouring channels that share a step: ``granularity: group16`` and ``group32``.

Of a weight, the input channels of each output channel are cut into groups, so a group is one output channel's weights for
those inputs (a kernel's pixels included); of an input, its channels are. All groups have one length: the largest divisor of
the number of channels that is at most the number in the name, 15 for 60 channels in groups of 16. Where that is less than
half the number, the smallest divisor above it is taken, and a prime number of channels is one group.

A product of integers is summed up for each group and multiplied with the group's factor (``lowering/groups.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .site import Site
from .spec import Option, SpecError

SIZES = {"group16": 16, "group32": 32}
"""Value of ``granularity`` -> longest group."""

GRANULARITY = Option(
    "tensor", "parameters per tensor, per channel, or per group of channels", choices=("tensor", "channel", *SIZES)
)


def group_length(channels: int, size: int) -> int:
    """Channels of a group: the divisor of ``channels`` that the module docstring says."""
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    below = max(n for n in divisors if n <= size)
    return below if 2 * below >= min(size, channels) else min(n for n in divisors if n > size)


@dataclass(frozen=True)
class Groups:
    """How a tensor is cut.

    Attributes:
        rows: shape in front of the channels that every index has groups of its own for; empty for an activation.
        count: groups along the channels.
        length: channels of a group.
        dim: of the channels.
    """

    rows: tuple[int, ...]
    count: int
    length: int
    dim: int

    @property
    def total(self) -> int:
        """Number of groups."""
        return math.prod(self.rows) * self.count

    @property
    def along(self) -> int | None:
        """Dimension of :meth:`folded` that :meth:`spread_over` gives parameters along."""
        return 0 if self.rows else self.dim

    def folded(self, x: Tensor) -> Tensor:
        """The tensor with one dimension whose every index has one step: (total, -1) of a weight, else as it is."""
        return x.reshape(self.total, -1) if self.rows else x

    def spread_over(self, parameter: Tensor) -> Tensor:
        """A parameter (total,), or with one value for each channel of an input, as one for each index of :attr:`along`."""
        if self.rows or parameter.numel() == self.count * self.length:
            return parameter
        return parameter.repeat_interleave(self.length)

    def apart(self, x: Tensor) -> Tensor:
        """(total, elements of the group)."""
        return x.reshape(self.total, -1) if self.rows else x.movedim(self.dim, 0).reshape(self.count, -1)

    def broadcast(self, parameter: Tensor, x: Tensor) -> Tensor:
        """A parameter as :meth:`spread_over` takes it that broadcasts to ``x``."""
        dim = self.dim % x.ndim
        shape = [1] * x.ndim
        if not self.rows:
            shape[dim] = -1
            return self.spread_over(parameter).reshape(shape)
        shape[: len(self.rows)], shape[dim] = self.rows, self.count
        return parameter.reshape(shape).repeat_interleave(self.length, dim)

    def compact(self, table: Tensor) -> Tensor:
        """One entry for each group of a table from :meth:`broadcast` (see ``encoded.spread``), where one stands for all."""
        if table.ndim == 0 or table.shape[self.dim] != self.count * self.length:
            return table
        dim = self.dim % table.ndim
        apart = table.unflatten(dim, (self.count, self.length))
        first = apart.narrow(dim + 1, 0, 1)
        return first.squeeze(dim + 1) if torch.equal(apart, first.expand_as(apart)) else table


def groups_of(site: Site, granularity: str, label: str) -> Groups | None:
    """The groups of a site; None for another granularity.

    Raises:
        SpecError: the site has no channels that could be cut.
    """
    if granularity not in SIZES:
        return None
    if site.role == "weight" and site.shape is not None and len(site.shape) > 1:
        rows = site.shape[: 2 if len(site.shape) == 3 else 1]  # three dimensions are a stack of matrices
        channels, dim = site.shape[len(rows)], len(rows)
    elif site.role == "act" and site.channels is not None and site.channel_dim is not None:
        rows, channels, dim = (), site.channels, site.channel_dim
    else:
        raise SpecError(
            f"{label}: granularity {granularity!r} cuts the channels of a weight or of an input, which this site has not; "
            "use tensor or channel"
        )
    length = group_length(channels, SIZES[granularity])
    return Groups(rows, channels // length, length, dim)
