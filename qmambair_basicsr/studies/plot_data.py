"""Data of the plots: samples before and after each quantizer, taken while a network restores images.

Memory does not grow with images or their number: of every tensor a seeded random sample is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import CheckpointError
from ..data.image_files import list_images
from ..inference.image_sets import middles
from ..inference.networks import load_network
from ..layers.convert import require_quantized
from ..layers.sites import activation_sites, parameter_sites
from ..quantizers import Quantizer
from ..recipes.option_files import TEST_KEYS, read_options

SAMPLES = 100_000
# 'layers.0.' numbers equal blocks, 'cab.0.act' different layers of one
_BLOCK_INDEX = re.compile(r"\.\d+(?=\.(?!(?:act|weight)$))")


class PlotError(ValueError):
    """Something a plot needs is missing or does not fit; the message says what, where and what to do."""


@dataclass(frozen=True)
class SiteValues:
    """Samples at one quantizer.

    Attributes:
        name: Place in the network, such as ``layers.0.conv.act`` or ``...self_attention.u``.
        kind: Class of the quantizer.
        bits: Its bits.
        before: Sample of its input, (n,).
        after: The same values quantized, (n,).
        low: Lower end of the grid, smallest over the images.
        high: Upper end, largest over the images.
        clipped: Share of the values outside the grid of their image.
    """

    name: str
    kind: str
    bits: int
    before: np.ndarray
    after: np.ndarray
    low: float
    high: float
    clipped: float

    @property
    def mean(self) -> float:
        """Mean of the sample."""
        return float(self.before.mean(dtype=np.float64))

    @property
    def std(self) -> float:
        """Standard deviation of the sample."""
        return float(self.before.std(dtype=np.float64))

    @property
    def outliers(self) -> float:
        """Share of the sample beyond three standard deviations from its mean."""
        return float((np.abs(self.before - self.mean) > 3 * self.std).mean())


class SiteSampler:
    """Draws from the inputs and outputs of a quantizer, one tensor after the other.

    Args:
        name: Place in the network.
        quantizer: The quantizer.
        samples: Values to keep of each tensor at most.
        generator: Source of the random choice.
    """

    def __init__(self, name: str, quantizer: Quantizer, samples: int, generator: torch.Generator):
        self.name, self.quantizer, self.samples, self.generator = name, quantizer, samples, generator
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []
        self._ranges: list[tuple[float, float]] = []
        self._clipped = self._seen = 0

    @torch.no_grad()
    def take(self, x: Tensor, y: Tensor) -> None:
        """Keep a part of the input ``x`` and of the quantized ``y`` at the same places."""
        count = x.numel()
        if count > self.samples:
            index = torch.randint(count, (self.samples,), generator=self.generator)
        else:
            index = torch.arange(count)
        self._before.append(_at(x, index))
        self._after.append(_at(y, index))
        low, high = self.quantizer.encode(x).limits(self.quantizer.qmin, self.quantizer.qmax)
        self._clipped += int(((x < low) | (x > high)).sum())
        self._seen += count
        self._ranges.append((low.min().item(), high.max().item()))

    def values(self) -> SiteValues:
        """Samples taken so far.

        Raises:
            PlotError: Nothing was.
        """
        if not self._before:
            raise PlotError(f"{self.name}: no image reached this quantizer")
        lows, highs = zip(*self._ranges, strict=True)
        return SiteValues(
            self.name,
            type(self.quantizer).__name__,
            self.quantizer.bits,
            torch.cat(self._before).numpy(),
            torch.cat(self._after).numpy(),
            min(lows),
            max(highs),
            self._clipped / self._seen,
        )


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Values of x at flat indices, without a contiguous copy of x."""
    return x[torch.unravel_index(index.to(x.device), x.shape)].float().cpu()


def open_network(opt_file: Path, checkpoint: Path | None, param_key: str = "params") -> tuple[nn.Module, dict]:
    """The network of an option file with trained weights, in eval mode, and the options.

    Args:
        opt_file: Test option file.
        checkpoint: BasicSR checkpoint; None takes ``path: pretrain_network_g`` of the file.
        param_key: Key of the state_dict in the checkpoint.

    Raises:
        OptionFileError: The file is missing, or no test option file.
        PlotError: The checkpoint is missing or does not fit.
    """
    opt = read_options(opt_file, TEST_KEYS)
    given = checkpoint or (opt.get("path") or {}).get("pretrain_network_g")
    if given is None:
        raise PlotError(f"{opt_file}: path has no pretrain_network_g; give --checkpoint FILE")
    try:
        net = load_network(opt["network_g"], given, param_key)
    except CheckpointError as err:
        hint = "" if checkpoint else f" (path: pretrain_network_g of {opt_file}; --checkpoint FILE takes another)"
        raise PlotError(f"{err}{hint}") from err
    return net, opt


def image_batches(folder: Path, channels: int, count: int, side: int) -> Iterator[Tensor]:
    """The centres of the first images of a folder, (1, channels, h, w) with h, w <= side, RGB in [0, 1].

    Args:
        folder: Inputs of the network.
        channels: Of the network's input.
        count: How many images at most.
        side: Longest side of a centre, in pixels.

    Raises:
        PlotError: No such folder, or no image in it.
    """
    images_of(folder)
    return middles(folder, channels, side, side, count)


def images_of(folder: Path) -> list[Path]:
    """Images of a folder, sorted by name.

    Raises:
        PlotError: No such folder, or no image in it.
    """
    try:
        return list_images(folder)
    except (FileNotFoundError, ValueError) as err:
        raise PlotError(f"{err}; give a folder with images") from err


def choose(names: Iterable[str], patterns: Sequence[str] | None) -> list[str]:
    """Names that match a pattern; without patterns, of names that differ in their indices only the middle one.

    Raises:
        PlotError: A pattern matches nothing.
    """
    names = list(names)
    if patterns is None:
        kinds: dict[str, list[str]] = {}
        for name in names:
            kinds.setdefault(_BLOCK_INDEX.sub(".*", name), []).append(name)
        middle = {group[len(group) // 2] for group in kinds.values()}
        return [name for name in names if name in middle]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = ", ".join(names[:5])
            raise PlotError(
                f"--sites: nothing matches {pattern!r}; sites are called like {near or 'nothing: none exist'}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def activation_samples(
    net: nn.Module, batches: Iterable[Tensor], patterns: Sequence[str] | None, samples: int, seed: int
) -> list[SiteValues]:
    """Sample the inputs of activation quantizers while the network restores images.

    Args:
        net: Calibrated or trained network.
        batches: Images, one by one.
        patterns: fnmatch patterns of site names; None = one of each kind.
        samples: Values to keep for each site, over all images.
        seed: Of the choice of values.

    Raises:
        ValueError: Nothing is quantized.
        PlotError: A pattern matches nothing, or there is no image.
    """
    require_quantized(net)
    found = {p.site.label: p.quantizer for p in activation_sites(net) if p.site.role == "act"}
    batches = list(batches)
    if not batches:
        raise PlotError("there is no image; give a folder with images")
    generator = torch.Generator().manual_seed(seed)
    samplers = {
        name: SiteSampler(name, found[name], max(samples // len(batches), 1), generator)
        for name in choose(found, patterns)
    }

    def hook(sampler: SiteSampler):
        return lambda _, inputs, output: sampler.take(inputs[0], output)

    handles = [sampler.quantizer.register_forward_hook(hook(sampler)) for sampler in samplers.values()]
    try:
        with torch.no_grad():
            for batch in batches:
                net(batch)
    finally:
        for handle in handles:
            handle.remove()
    return [sampler.values() for sampler in samplers.values()]


def parameter_samples(net: nn.Module, patterns: Sequence[str] | None, samples: int, seed: int) -> list[SiteValues]:
    """Sample weights and the scan's parameters before and after quantization; arguments as above."""
    require_quantized(net)
    generator = torch.Generator().manual_seed(seed)
    found = {p.site.label: p for p in parameter_sites(net)}
    sites = []
    for name in choose(found, patterns):
        tensor, quantizer = found[name].tensor(), found[name].quantizer
        sampler = SiteSampler(name, quantizer, samples, generator)
        with torch.no_grad():
            sampler.take(tensor, quantizer(tensor))
        sites.append(sampler.values())
    return sites
