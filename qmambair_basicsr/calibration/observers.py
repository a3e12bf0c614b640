"""Statistics of tensors that arrive in batches: collect with ``update``, then ``finish``.

What an observer returns depends on the values it saw and not on how they were cut into batches: exactly for
:class:`MinMaxObserver`, :class:`HistogramObserver` and :class:`PercentileObserver`, up to the rounding of float64 sums
for :class:`MomentsObserver` and :class:`GramObserver`. Two observers of the same kind can be merged, so processes may
share the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHANNEL_SHIFT = 40  # keys of float32 take 33 bits at most: a channel's keys lie apart from its neighbours'


class Observer:
    """Base class: refuses values that no statistic can be made of, and counts batches.

    A subclass implements :meth:`take`, :meth:`absorb` and :meth:`result`.
    """

    batches: int = 0

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take one batch into account.

        Raises:
            ValueError: when ``x`` is empty or holds NaN or infinity.
        """
        if x.numel() == 0 or not bool(torch.isfinite(x).all()):
            what = "an empty tensor" if x.numel() == 0 else "NaN or infinity"
            raise ValueError(f"{type(self).__name__}: cannot observe {what}; look at the layer in front of it")
        self.take(x.detach())
        self.batches += 1

    def merge(self, other: Observer) -> None:
        """Take what another observer of the same kind and settings saw into account.

        Raises:
            TypeError: another kind of observer.
        """
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} cannot be merged with {type(other).__name__}")
        if other.batches:
            self.absorb(other)
            self.batches += other.batches

    def finish(self) -> Any:
        """The statistic of everything seen so far.

        Raises:
            ValueError: nothing was seen.
        """
        if not self.batches:
            raise ValueError(f"{type(self).__name__}: there was no batch; give at least one")
        return self.result()

    def take(self, x: Tensor) -> None:
        """Add a finite, non-empty tensor."""
        raise NotImplementedError

    def absorb(self, other: Any) -> None:
        """Add what ``other``, of the same class, has collected."""
        raise NotImplementedError

    def result(self) -> Any:
        """The statistic; at least one batch was seen."""
        raise NotImplementedError


def _rows(x: Tensor, dim: int | None) -> Tensor:
    """View of ``x`` as (groups, values of the group)."""
    return x.reshape(1, -1) if dim is None else x.movedim(dim, 0).flatten(1)


class MinMaxObserver(Observer):
    """Smallest and largest value, of the whole tensor or of each channel.

    Args:
        dim: dimension of the channels; None for one pair of values.
    """

    def __init__(self, dim: int | None = None) -> None:
        self.dim = dim
        self.low = self.high = None

    def take(self, x: Tensor) -> None:
        self._add(*_rows(x, self.dim).aminmax(dim=1))

    def absorb(self, other: MinMaxObserver) -> None:
        self._add(other.low, other.high)

    def _add(self, low: Tensor, high: Tensor) -> None:
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def result(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest values, (groups,) each."""
        return self.low, self.high


@dataclass(frozen=True)
class Histogram:
    """How often values occurred, in bins of equal relative width.

    Attributes:
        values: (bins,) float64, ascending; the middle of each bin that was hit.
        counts: (bins,) int64.
    """

    values: Tensor
    counts: Tensor

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def percentile(self, percent: float) -> float:
        """The value below which ``percent`` (0 to 100) of all values lie, with linear interpolation between two ranks."""
        rank = percent / 100 * (self.total - 1)
        ends = self.counts.cumsum(0)  # ranks below ends[i] lie in bin i or before
        lower, upper = (self.values[int(torch.searchsorted(ends, int(r), right=True))] for r in (rank, -(-rank // 1)))
        share = rank - int(rank)
        return float(lower + (upper - lower) * share)


class HistogramObserver(Observer):
    """A histogram that needs no range in advance.

    Floating-point numbers have the order of their bit patterns; a bin holds those that agree in sign, exponent and the
    first ``bits`` bits of the mantissa, so it is never wider than ``2**-bits`` of its values. Only bins that were hit
    are stored. Values are taken as float32.

    Args:
        bits: bits of the mantissa, 0 to 23; 23 tells all float32 numbers apart.
        dim: dimension of the channels, for a histogram of each; None for one.
    """

    def __init__(self, bits: int = 10, dim: int | None = None) -> None:
        if not 0 <= bits <= 23:
            raise ValueError(f"{type(self).__name__}: bits must be 0 to 23, got {bits}")
        self.bits, self.dim = bits, dim
        self.keys = self.counts = None
        self.range = MinMaxObserver(dim)

    def take(self, x: Tensor) -> None:
        rows = _rows(x.float(), self.dim).contiguous()
        self.range.update(x.float())
        pattern = rows.view(torch.int32).long()
        key = torch.where(pattern < 0, -(pattern & 0x7FFFFFFF), pattern)  # ascending with the value; -0 is 0
        key = (key >> (23 - self.bits)) + (torch.arange(len(rows), device=x.device) << _CHANNEL_SHIFT)[:, None]
        self._add(*key.unique(return_counts=True))

    def absorb(self, other: HistogramObserver) -> None:
        if (self.bits, self.dim) != (other.bits, other.dim):
            raise TypeError(f"{type(self).__name__}: the other one has bits {other.bits} and dim {other.dim}")
        self.range.merge(other.range)
        self._add(other.keys, other.counts)

    def _add(self, keys: Tensor, counts: Tensor) -> None:
        if self.keys is None:
            self.keys, self.counts = keys, counts
            return
        joined, place = torch.cat((self.keys, keys)).unique(return_inverse=True)
        self.counts = torch.zeros_like(joined).index_add_(0, place, torch.cat((self.counts, counts)))
        self.keys = joined

    def result(self) -> list[Histogram]:
        """One histogram for each channel, or one."""
        low, high = self.range.finish()
        channel = (self.keys + (1 << (_CHANNEL_SHIFT - 1))) >> _CHANNEL_SHIFT
        histograms = []
        for index in range(low.numel()):
            chosen = channel == index
            first = (self.keys[chosen] - (index << _CHANNEL_SHIFT)) << (23 - self.bits)
            last = first + (1 << (23 - self.bits)) - 1
            middle = (_value(first) + _value(last)) / 2
            histograms.append(Histogram(middle.clamp(low[index].double(), high[index].double()), self.counts[chosen]))
        return histograms


def _value(key: Tensor) -> Tensor:
    """The float32 number of an ordered key, as float64; beyond the largest finite one, that."""
    largest = 0x7F7FFFFF
    key = key.clamp(-largest, largest)
    sign = torch.where(key < 0, -1.0, 1.0)
    return key.abs().to(torch.int32).view(torch.float32).double() * sign


class PercentileObserver(HistogramObserver):
    """Two percentiles; the relative error of each is at most ``2**-(bits + 1)``, and 0 and 100 are exact.

    Args:
        low, high: percent, ``0 <= low < high <= 100``.
        bits, dim: as :class:`HistogramObserver`.
    """

    def __init__(self, low: float = 0.1, high: float = 99.9, bits: int = 12, dim: int | None = None) -> None:
        super().__init__(bits, dim)
        if not 0 <= low < high <= 100:
            raise ValueError(f"PercentileObserver: 0 <= low < high <= 100 does not hold for {low} and {high}")
        self.low, self.high = low, high

    def result(self) -> tuple[Tensor, Tensor]:
        """Values at the lower and the upper percentile, (groups,) each."""
        lowest, highest = self.range.finish()
        histograms = super().result()
        low = [h.percentile(self.low) for h in histograms]
        high = [h.percentile(self.high) for h in histograms]
        return (
            lowest if self.low == 0 else torch.tensor(low).to(lowest),
            highest if self.high == 100 else torch.tensor(high).to(highest),
        )


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each cell of the dimensions kept.

    Attributes:
        count: number of values behind each cell.
        mean: float64.
        variance: float64, divided by ``count - 1`` (0 where the count is 1).
    """

    count: int
    mean: Tensor
    variance: Tensor


class MomentsObserver(Observer):
    """Mean and variance (Chan's update, float64) over all dimensions but some: per channel, per token, or of everything.

    Args:
        keep: dimensions with statistics of their own, such as ``(-1,)`` for the channels of (B, H, W, C), ``(1, 2)`` for its
            pixels; their sizes must be the same in each batch.
    """

    def __init__(self, keep: tuple[int, ...] = ()) -> None:
        self.keep = tuple(keep)
        self.count, self.mean, self.squares = 0, None, None

    def take(self, x: Tensor) -> None:
        kept = sorted(dim % x.ndim for dim in self.keep)
        values = x.double().movedim(kept, tuple(range(len(kept)))).flatten(len(kept))
        mean = values.mean(-1)
        self._add(values.shape[-1], mean, (values - mean[..., None]).square().sum(-1))

    def absorb(self, other: MomentsObserver) -> None:
        self._add(other.count, other.mean, other.squares)

    def _add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self.mean is None:
            self.count, self.mean, self.squares = count, mean, squares
            return
        if mean.shape != self.mean.shape:
            raise ValueError(
                f"MomentsObserver: the kept dimensions were {tuple(self.mean.shape)} and are {tuple(mean.shape)} now; "
                "show it batches of one size"
            )
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.count = total

    def result(self) -> Moments:
        return Moments(self.count, self.mean, self.squares / max(self.count - 1, 1))


@dataclass(frozen=True)
class Gram:
    """Second moments of vectors of C channels.

    Attributes:
        count: number of vectors.
        gram: X^T X, (C, C) float64 (the Hessian of a layer's squared output error is twice this, as in GPTQ).
        mean: (C,) float64.
    """

    count: int
    gram: Tensor
    mean: Tensor

    @property
    def covariance(self) -> Tensor:
        """(C, C), divided by ``count - 1`` (by 1 where there is one vector)."""
        return (self.gram - self.count * torch.outer(self.mean, self.mean)) / max(self.count - 1, 1)


class GramObserver(Observer):
    """X^T X and the mean over all vectors along one dimension.

    Args:
        dim: dimension of the channels.
    """

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim
        self.count, self.gram, self.sum = 0, None, None

    def take(self, x: Tensor) -> None:
        vectors = x.movedim(self.dim, -1).flatten(0, -2).double() if x.ndim > 1 else x.double()[None]
        self._add(vectors.shape[0], vectors.T @ vectors, vectors.sum(0))

    def absorb(self, other: GramObserver) -> None:
        self._add(other.count, other.gram, other.sum)

    def _add(self, count: int, gram: Tensor, total: Tensor) -> None:
        if self.gram is not None and gram.shape != self.gram.shape:
            raise ValueError(f"GramObserver: there were {len(self.gram)} channels and are {len(gram)} now")
        self.count += count
        self.gram = gram if self.gram is None else self.gram + gram
        self.sum = total if self.sum is None else self.sum + total

    def result(self) -> Gram:
        return Gram(self.count, self.gram, self.sum / self.count)
