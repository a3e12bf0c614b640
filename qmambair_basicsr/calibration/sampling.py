"""Observers that keep values themselves, for searches that no histogram serves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .observers import Observer, _rows

STRIDE = 2654435761  # a prime: a plain stride would meet the same few channels of a channels-last tensor


@dataclass(frozen=True)
class Sample:
    """Values of a site.

    Attributes:
        rows: (groups, values), spread over everything that was seen.
        low, high: smallest and largest of all values seen, (groups,) each.
    """

    rows: Tensor
    low: Tensor
    high: Tensor

    def with_ends(self) -> Tensor:
        """The rows with the smallest and the largest value appended, so that a search sees the whole range."""
        return torch.cat((self.rows, self.low[:, None], self.high[:, None]), 1)

    def quantiles(self, *shares: float) -> Tensor:
        """Quantiles of each row, (shares, groups), in between by linear interpolation."""
        at = torch.tensor(shares, device=self.rows.device)
        return torch.quantile(self.rows.float(), at, dim=1).to(self.rows.dtype)


class SampleObserver(Observer):
    """Values of each group, the same ones every time, and the extremes of all.

    Args:
        count: values kept of each group and batch; 0 keeps all.
        dim: dimension of the groups; None for one group.
    """

    def __init__(self, count: int, dim: int | None = None) -> None:
        self.count, self.dim = count, dim
        self.kept: list[Tensor] = []
        self.low = self.high = None

    def take(self, x: Tensor) -> None:
        rows = _rows(x, self.dim)
        self._ends(*rows.aminmax(dim=1))
        self.kept.append(self._some(rows).clone())

    def absorb(self, other: SampleObserver) -> None:
        self._ends(other.low, other.high)
        self.kept += other.kept

    def result(self) -> Sample:
        return Sample(torch.cat(self.kept, 1), self.low, self.high)

    def _some(self, rows: Tensor) -> Tensor:
        size = rows.shape[1]
        if not self.count or size <= self.count:
            return rows
        return rows[:, torch.arange(self.count, device=rows.device) * STRIDE % size]

    def _ends(self, low: Tensor, high: Tensor) -> None:
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)


class RunningPercentile(Observer):
    """Percentile of the magnitude of each batch, the first as it is, then moved towards the new one by ``rate``.

    Quamba's observer of the scan's input (``PerTensorPercentileObserver``): it depends on the order of the batches.
    torch.quantile takes at most 2^24 values, so larger tensors are sampled.

    Args:
        share: alpha, 0..1: quantile of |x|, linearly interpolated.
        rate: sigma.
    """

    most = 2**24

    def __init__(self, share: float = 0.9995, rate: float = 0.01) -> None:
        self.share, self.rate = share, rate
        self.value = None

    def take(self, x: Tensor) -> None:
        magnitude = x.abs().float().flatten()
        if magnitude.numel() > self.most:
            magnitude = magnitude[torch.arange(self.most, device=x.device) * STRIDE % magnitude.numel()]
        now = torch.quantile(magnitude, self.share)
        self.value = now if self.value is None else self.value + self.rate * (now - self.value)

    def result(self) -> Tensor:
        """()"""
        return self.value


class ChannelMeans(Observer):
    """Largest mean magnitude of each channel over the batches (Quamba2's statistics for sorting).

    Args:
        dim: dimension of the channels.
    """

    def __init__(self, dim: int = -1) -> None:
        self.dim, self.value = dim, None

    def take(self, x: Tensor) -> None:
        now = _rows(x, self.dim).abs().mean(1)
        self.value = now if self.value is None else torch.maximum(self.value, now)

    def absorb(self, other: ChannelMeans) -> None:
        self.value = torch.maximum(self.value, other.value)

    def result(self) -> Tensor:
        """(C,)"""
        return self.value
