"""Quamba2: groups of channels with a range each for what the scan reads.

Chiang et al., "Quamba2: A Robust and Scalable Post-training Quantization Framework for Selective State Space Models", ICML
2025; statistics as in enyac-group/Quamba: largest mean magnitude of a channel over the batches, channels sorted by it.

Published for Mamba2, whose channels come in heads. SS2D has none, so (our decision) the sorted channels are cut into
``heads`` pseudo-heads of equal size; Ward's method joins these, by their profiles of unit norm, into ``head_groups``; inside a
group an ordered k-means makes ``channel_groups``. The input of scan and x_proj then has head_groups * channel_groups ranges
(16), the states one for each state index, B and C one each. All directions read one map, so they share ranges (statistics are
pooled over them). The channels themselves stay where they are: fake quantization and packed files hold a range for each
channel, so sorting them would change nothing.

Ranges for groups need quantizers per channel (``granularity: channel``) at ``u``, ``x_proj`` and ``h``; where the ``quant:``
block has one per tensor, it gets one range. Other sites are as in Quamba with the percentile .99999.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..calibration import ChannelMeans, Sample, collect
from ..layers.sites import PlacedSite
from ..quantizers.spec import Option
from .method import register_method
from .quamba import Quamba, part_of
from .static import symmetric


def ward(profiles: Tensor, groups: int) -> list[list[int]]:
    """Clusters of neighbours in Ward's sense: pairs are joined whose union raises the sum of squares least.

    Args:
        profiles: (n, d).
        groups: how many are left.

    Returns:
        Indices of each cluster, ascending; clusters by their first index.
    """
    clusters = [[i] for i in range(len(profiles))]
    while len(clusters) > groups:
        centres = torch.stack([profiles[c].mean(0) for c in clusters])
        sizes = torch.tensor([len(c) for c in clusters], dtype=profiles.dtype)
        cost = (sizes[:, None] * sizes / (sizes[:, None] + sizes)) * torch.cdist(centres, centres).square()
        cost.fill_diagonal_(torch.inf)
        first, second = sorted(divmod(int(cost.argmin()), len(clusters)))
        clusters[first] = sorted(clusters[first] + clusters.pop(second))
    return sorted(clusters)


def ordered_means(values: Tensor, groups: int, rounds: int = 100) -> Tensor:
    """k-means of ascending numbers, centres starting evenly spaced; labels ascend with the numbers.

    Args:
        values: (n,), ascending.
        groups: at most so many clusters.

    Returns:
        (n,) int64.
    """
    groups = min(groups, len(values))
    centres = values[torch.arange(groups) * len(values) // groups + len(values) // (2 * groups)]
    labels = torch.zeros(len(values), dtype=torch.int64)
    for _ in range(rounds):
        new = (values[:, None] - centres).abs().argmin(1)
        if torch.equal(new, labels):
            break
        labels = new
        centres = torch.stack(
            [values[labels == g].mean() if bool((labels == g).any()) else centres[g] for g in range(groups)]
        ).sort()[0]
    return labels


def channel_groups(means: Tensor, heads: int, head_groups: int, groups: int) -> Tensor:
    """Group of each channel, (C,) int64.

    Args:
        means: largest mean magnitudes, (C,).
        heads: pseudo-heads that the sorted channels are cut into.
        head_groups, groups: see the module docstring.
    """
    order = means.argsort()
    pieces = order.tensor_split(min(heads, len(order)))
    width = min(len(piece) for piece in pieces)
    profiles = torch.stack([means[piece[:width]] for piece in pieces]).double()
    profiles = profiles / torch.linalg.vector_norm(profiles, dim=1, keepdim=True).clamp_min(1e-30)
    labels = torch.zeros(len(means), dtype=torch.int64)
    for index, cluster in enumerate(ward(profiles, head_groups)):
        channels = torch.cat([pieces[i] for i in cluster])
        channels = channels[means[channels].argsort()]
        labels[channels] = index * groups + ordered_means(means[channels], groups)
    return labels


@register_method
class Quamba2(Quamba):
    """Sixteen ranges for the scan's input; see the module docstring."""

    options: ClassVar = {
        **Quamba.options,
        "percentile": Option(0.99999, "alpha of the scan's input", low=0.5, high=1),
        "heads": Option(8, "pseudo-heads", low=1, high=1024),
        "head_groups": Option(4, "groups of heads", low=1, high=64),
        "channel_groups": Option(4, "groups of channels in each", low=1, high=64),
    }

    def observe(self, net: nn.Module, batches: Sequence[Tensor], sites: Sequence[PlacedSite]) -> None:
        super().observe(net, batches, sites)
        grouped = {p.site.label for p in sites if part_of(p) in ("u", "x_proj") and p.quantizer.dim is not None}
        means = (
            collect(net, batches, {"*": lambda p: ChannelMeans(p.quantizer.dim) if p.site.label in grouped else None})
            if grouped
            else {}
        )
        numbers = [int(self.settings[key]) for key in ("heads", "head_groups", "channel_groups")]
        self.labels = {label: channel_groups(mean.cpu(), *numbers) for label, mean in means.items()}

    def choose(self, placed: PlacedSite, sample: Sample) -> tuple[Tensor, Tensor]:
        largest = torch.maximum(sample.high, -sample.low)
        labels = self.labels.get(placed.site.label)
        if labels is not None:
            share, groups = self.settings["percentile"], {}
            for group in labels.unique().tolist():
                inside = labels == group
                magnitudes = sample.rows[inside].abs().float().flatten()
                groups[group] = torch.quantile(magnitudes[: 2**24], share).to(largest)
            largest = torch.stack([groups[group] for group in labels.tolist()])
            return symmetric(placed, sample, largest.clamp_min(1e-5))
        if part_of(placed) == "h" and placed.quantizer.dim is not None:
            return symmetric(placed, sample, largest.clamp_min(1e-5))
        return super().choose(placed, sample)
