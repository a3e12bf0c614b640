"""Quantized tensors: integer codes, and the rule by which codes become values.

A quantizer's ``encode(x)`` returns one of the kinds below; frozen parameters, packed files, verification and lowering
read nothing else. A kind is a frozen dataclass: the codes, and the *tables* (its other fields, tensors or None) that
:meth:`Encoded.values` turns them into values with. A method whose codes mean something else brings a kind of its own, and
its quantizer names it (``Quantizer.kind``).

============== ==================================================================================================
AffineCodes    ``(code - zero) * scale``, one scale and zero for the tensor, a channel, a token or a group of columns;
               clamped to bounds where it has them
BinaryOrders   ``offset + sum_k alpha_k b_k`` with signs ``b_k`` = -1, +1 (Quant-dLLM, any-order quantizer): bit k of the
               code says b_k, so K orders take K bits
============== ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Encoded:
    """Codes of a tensor.

    Attributes:
        codes: integers in [-2^(bits-1), 2^(bits-1) - 1], shape of the tensor.
    """

    codes: Tensor

    @classmethod
    def table_names(cls) -> tuple[str, ...]:
        """Names of the tables, in the order in which files hold them."""
        return tuple(field.name for field in fields(cls) if field.name != "codes")

    def tables(self) -> dict[str, Tensor]:
        """Name -> table, those that are None left out."""
        found = {name: getattr(self, name) for name in self.table_names()}
        return {name: table for name, table in found.items() if table is not None}

    def values(self) -> Tensor:
        """The real values, shape of ``codes``, in the precision of the tables."""
        raise NotImplementedError

    def defect(self, bits: int) -> str:
        """Mistake in the tables that a file holds for codes of so many bits; empty where there is none."""
        return ""

    def limits(self, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
        """Smallest and largest value that codes in [lowest, highest] reach, broadcastable to ``codes``."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class AffineCodes(Encoded):
    """``(codes - zero) * scale``.

    Attributes:
        scale: > 0, broadcastable to ``codes``, or with groups along a dimension (see :func:`spread`).
        zero: code of the value 0, shaped as scale; need not be an integer.
        bounds: lowest and highest value (2, *shape of scale) that values are clamped to, or None.
    """

    scale: Tensor
    zero: Tensor
    bounds: Tensor | None = None

    def values(self) -> Tensor:
        scale, zero = self._spread(self.scale), self._spread(self.zero)
        value = (self.codes - zero) * scale
        if self.bounds is None:
            return value
        low, high = map(self._spread, self.bounds)
        return torch.minimum(torch.maximum(value, low), high)

    def limits(self, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
        scale, zero = self._spread(self.scale), self._spread(self.zero)
        return (lowest - zero) * scale, (highest - zero) * scale

    def defect(self, bits: int) -> str:
        return "" if bool((self.scale > 0).all()) else f"a scale is {self.scale.min().item()}, it must be positive"

    def reshaped(self, reshape: Callable[[Tensor], Tensor]) -> AffineCodes:
        """The codes after a change of leading dimensions (a view, a selection), which scales have too.

        Args:
            reshape: applied to the codes and to the tables, whose last dimension holds groups or has length 1.
        """
        leading = self.codes.shape[:-1]

        def table(t: Tensor) -> Tensor:
            return t if t.ndim == 0 else reshape(t.expand(*leading, t.shape[-1]))

        bounds = None if self.bounds is None else torch.stack(tuple(map(table, self.bounds)))
        return AffineCodes(reshape(self.codes), table(self.scale), table(self.zero), bounds)

    def integer_rows(self, leading: int = 1) -> bool:
        """Whether scale and zero are one for each index of the leading dimensions, or fewer.

        Products along the other dimensions can then be summed up as integers.
        """
        sizes = self.codes.shape[:leading]
        return all(
            t.ndim == 0
            or (all(n in (1, size) for n, size in zip(t.shape, sizes, strict=False)) and t.shape[leading:].numel() == 1)
            for t in (self.scale, self.zero)
        )

    def integer_groups(self, leading: int, least: int) -> bool:
        """:meth:`integer_rows`, or with scale and zero for each group of at least so many indices of the next dimension."""
        sizes, width = self.codes.shape[:leading], self.codes.shape[leading]
        return all(
            t.ndim == 0
            or (
                t.ndim == self.codes.ndim
                and all(n in (1, size) for n, size in zip(t.shape, sizes, strict=False))
                and -(-width // t.shape[leading]) >= min(least, width)
                and t.shape[leading + 1 :].numel() == 1
            )
            for t in (self.scale, self.zero)
        )

    def _spread(self, table: Tensor) -> Tensor:
        return spread(table, self.codes.shape)


@dataclass(frozen=True, eq=False)
class BinaryOrders(Encoded):
    """``offset + sum_k alpha_k b_k``; b_k = +1 where bit k of ``code + 2^(K-1)`` is set, else -1.

    Attributes:
        alpha: (K, *) with * broadcastable to ``codes``, or with groups (:func:`spread`); one value for a row, say.
        columns: second factor of alpha, as ``alpha``, such as one value for a column; None for 1.
        offset: as one order of ``alpha``; None for 0.
    """

    alpha: Tensor
    columns: Tensor | None = None
    offset: Tensor | None = None

    def values(self) -> Tensor:
        unsigned = self.codes.to(torch.int16) + 2 ** (len(self.alpha) - 1)
        shape = self.codes.shape
        total = 0 if self.offset is None else spread(self.offset, shape)
        for k in range(len(self.alpha)):
            sign = ((unsigned >> k) & 1) * 2 - 1
            total = total + self._alpha(k) * sign
        return total

    def limits(self, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
        reach = sum(self._alpha(k).abs() for k in range(len(self.alpha)))
        middle = 0 if self.offset is None else spread(self.offset, self.codes.shape)
        return middle - reach, middle + reach

    def defect(self, bits: int) -> str:
        for name, table in self.tables().items():
            leading = () if name == "offset" else (bits,)
            shape = tuple(table.shape[len(leading) :])
            fits = tuple(table.shape[: len(leading)]) == leading and len(shape) <= self.codes.ndim
            if not fits or not all(map(fits_along, shape[::-1], self.codes.shape[::-1])):
                return f"{name} has shape {tuple(table.shape)}, codes of {bits} bits {tuple(self.codes.shape)}"
        return ""

    def _alpha(self, k: int) -> Tensor:
        alpha = spread(self.alpha[k], self.codes.shape)
        return alpha if self.columns is None else alpha * spread(self.columns[k], self.codes.shape)


def fits_along(entries: int, length: int) -> bool:
    """Whether so many entries of a table can stand for a dimension of a length, see :func:`spread`."""
    return 1 <= entries <= length and -(-length // -(-length // entries)) == entries


def spread(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view or copy of a table that broadcasts to a shape.

    Where a dimension of length n has g entries, 1 < g < n, each entry stands for a group of ceil(n / g) neighbours (the
    last group may be shorter).
    """
    for dim in range(-table.ndim, 0):
        entries, length = table.shape[dim], shape[dim]
        if entries not in (1, length):
            table = table.repeat_interleave(-(-length // entries), dim).narrow(dim, 0, length)
    return table
