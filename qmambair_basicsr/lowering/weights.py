"""Weights of integer layers: codes, and how products with them are summed up and multiplied with their factors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..layers.convert import FrozenCodes
from ..ops import integer
from ..ops.integer import Codes
from .grids import LoweringError, StaticGrid


class IntegerWeight(nn.Module):
    """int8 codes (G, O, ...) of a weight with G groups of O output channels, and the extra channel of ones.

    Args:
        frozen: codes of the weight, with one scale for all or one per output channel (leading dimension).
        groups: G.
        part: index of the leading dimension of the parameter that ``frozen`` is; None for all of it.
    """

    def __init__(self, frozen: FrozenCodes, groups: int, part: int | None = None):
        super().__init__()
        self.site, self.groups, self.part = frozen.site.quantizer_path, groups, part
        if not frozen.affine:
            raise LoweringError(
                f"{frozen.site.label}: values are clamped once more after they were quantized (DLS, mode: official), "
                "so codes and scale alone do not give the weight; use mode: stable for weights"
            )
        codes = frozen.codes.unflatten(0, (groups, -1))  # (G, O, ...)
        shape = (groups, codes.shape[1], *[1] * (codes.ndim - 2))
        per_channel = frozen.scale.numel() > 1
        scale = frozen.scale.reshape(-1).expand(groups * codes.shape[1]).view(shape)
        zero = frozen.zero.reshape(-1).expand(groups * codes.shape[1]).view(shape)
        self.shifted = bool(zero.any())
        if self.shifted:
            codes = torch.cat((codes, torch.ones_like(codes[:, :1])), 1)
            ones = scale.mean(1, keepdim=True) if per_channel else scale[:, :1]
            self.register_buffer("factor", (zero * scale / ones).flatten(0, 1).flatten())  # (G * O,)
            scale = torch.cat((scale, ones), 1)
        self.axis = 0 if per_channel else None
        self.register_buffer("codes", codes.flatten(0, 1).contiguous())
        self.register_buffer("scale", scale.flatten().contiguous() if per_channel else scale.flatten()[0].clone())
        zero_points = torch.zeros_like(self.scale, dtype=torch.int8)
        self.register_buffer("zero_point", zero_points)
        self.bound = 2 ** (frozen.bits - 1)

    def forward(self) -> Codes:
        return integer.constant(self.codes, self.scale, self.zero_point, self.axis, self.bound)

    def linear(self, x: Codes | Tensor) -> Tensor:
        """x (..., I) -> (..., O): the product with the weight, the shift of x left out of it."""
        y = integer.linear(x, self())
        return y[..., :-1] - y[..., -1:] * self.factor if self.shifted else y

    def conv2d(self, x: Codes | Tensor, bias: Tensor, geometry: tuple) -> Tensor:
        """Convolution of x (B, C, H, W), the shift of x left out of it, plus bias (O,)."""
        y = integer.conv2d(x, self(), None if self.shifted else bias, geometry, self.groups)
        if not self.shifted:
            return y
        y = y.unflatten(1, (self.groups, -1))  # (B, G, O + 1, H, W)
        factor = self.factor.view(1, self.groups, -1, 1, 1)
        return (y[:, :, :-1] - y[:, :, -1:] * factor).flatten(1, 2) + bias.view(1, -1, 1, 1)


class GroupedWeight(nn.Module):
    """A weight with a step for each group of input channels, or one for an input with such groups.

    The products of each group of channels are summed up as integers, its sum is multiplied with the steps of the group, and
    then the groups are added.

    Args:
        frozen: codes of the weight (O, I, ...), with one scale for each row and group.
        groups: of a convolution.
        part: see :class:`IntegerWeight`.
        steps: of the channels of the input, (C,); None where it has one step.
    """

    def __init__(self, frozen: FrozenCodes, groups: int, part: int | None, steps: Tensor | None):
        super().__init__()
        self.groups, self.slices = groups, list(_slices(frozen, groups, steps))
        self.cells = nn.ModuleList(
            IntegerWeight(frozen.within_columns(begin, end), groups, part) for begin, end in self.slices
        )
        width, rows = frozen.codes.shape[1], frozen.codes.shape[0] // groups
        self.register_buffer("unit", None if steps is None else torch.ones_like(steps[0]))
        factors = None
        if steps is not None:  # (cells, output channels)
            own = steps.view(groups, width)
            factors = torch.stack([own[:, begin].repeat_interleave(rows) for begin, _ in self.slices])
        self.register_buffer("factors", factors)

    def linear(self, x: Codes | Tensor) -> Tensor:
        """As :meth:`IntegerWeight.linear`."""
        total = None
        for i, part in enumerate(self._parts(x, -1)):
            y = self.cells[i].linear(part)
            y = y if self.factors is None else y * self.factors[i]
            total = y if total is None else total + y
        return total

    def conv2d(self, x: Codes | Tensor, bias: Tensor, geometry: tuple) -> Tensor:
        """As :meth:`IntegerWeight.conv2d`."""
        total = bias.view(1, -1, 1, 1)
        for i, part in enumerate(self._parts(x, 1)):
            y = self.cells[i].conv2d(part, torch.zeros_like(bias), geometry)
            total = total + (y if self.factors is None else y * self.factors[i].view(1, -1, 1, 1))
        return total

    def _parts(self, x: Codes | Tensor, dim: int) -> Iterator[Codes | Tensor]:
        """The channels of each cell."""
        data = x if isinstance(x, Tensor) else x.data
        split = data.unflatten(dim, (self.groups, -1))  # (..., G, C / G, ...)
        inner = dim if dim < 0 else dim + 1
        for begin, end in self.slices:
            part = split.narrow(inner, begin, end - begin).flatten(*((-2, -1) if dim < 0 else (1, 2)))
            if isinstance(x, Tensor):
                yield part
            else:
                yield x._replace(data=part, step=x.step if self.unit is None else self.unit)


def _slices(frozen: FrozenCodes, groups: int, steps: Tensor | None) -> Iterator[tuple[int, int]]:
    """Neighbouring input channels (of each of a convolution's groups) whose scales and steps are the same."""
    width = frozen.codes.shape[1]
    begins = {0, width}
    for table in (frozen.scale, frozen.zero):
        if table.ndim > 1 and table.shape[1] > 1:
            begins |= set(range(0, width, -(-width // table.shape[1])))
    if steps is not None:
        own = steps.view(groups, width)
        begins |= {i for i in range(1, width) if not torch.equal(own[:, i], own[:, i - 1])}
    ordered = sorted(begins)
    yield from itertools.pairwise(ordered)


def integer_weight(frozen: FrozenCodes, act: nn.Module, groups: int, part: int | None = None) -> nn.Module:
    """The weight of a layer: :class:`IntegerWeight`, or :class:`GroupedWeight` where steps differ along the channels.

    Args:
        frozen: codes.
        act: grid of the input.
        groups: of a convolution.
        part: see :class:`IntegerWeight`.
    """
    steps = act.step if isinstance(act, StaticGrid) and act.step.numel() > 1 else None
    if frozen.integer_form() and steps is None:
        return IntegerWeight(frozen, groups, part)
    return GroupedWeight(frozen, groups, part, steps)
