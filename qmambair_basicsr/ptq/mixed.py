"""How much each site matters, and bits for each from that.

:func:`scores` is a first-order estimate of the squared change of the network's output that quantizing one site alone causes:
with random directions v and the gradient g of <v, output>, the mean of (g . (q(x) - x))^2 is |J (q(x) - x)|^2. One backward
pass gives it for all sites and widths. :func:`measured` quantizes one site at a time instead.

:func:`allocate` gives bits where a bit lowers the score most, until the average is used up. :func:`by_blocks` is ABMP of
Quant-dLLM ("adaptive block-wise mixed precision"): three orders for the top share of weights by the sum of Z, one for the
lowest, two for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.sites import PlacedSite, network_sites
from ..layers.transforms import places
from .gptq import input_grams
from .quant_dllm import matrices_of, sensitivity
from .search import dobi, quantized
from .training import full_precision

SAMPLES = 16_384


@dataclass(frozen=True)
class Rated:
    """A site, and what quantizing it alone costs.

    Attributes:
        label: dotted name.
        name: dotted name of its part, the pattern of an override.
        kind: of the site.
        size: values of one image at the site, or of the parameter.
        costs: width that its quantizer can have -> squared change of the output, relative to the output's variance.
    """

    label: str
    name: str
    kind: str
    size: int
    costs: Mapping[int, float]


def sites_to_rate(net: nn.Module) -> list[PlacedSite]:
    """Quantized sites whose width an override can choose by itself."""
    return [p for p in network_sites(net) if p.quantizer.bits != 32 and p.site.kind not in ("routing", "state")]


def _widths(placed: PlacedSite, widths: Sequence[int]) -> list[int]:
    return [bits for bits in widths if bits in placed.quantizer.bit_widths]


def _rows(placed: PlacedSite, x: Tensor) -> Tensor:
    dim = getattr(placed.quantizer, "dim", None)
    return x.reshape(1, -1) if dim is None else x.movedim(dim, 0).flatten(1)


@torch.no_grad()
def _rounded(placed: PlacedSite, x: Tensor, bits: int) -> Tensor:
    """A tensor on the grid of least error of so many bits, one for each row."""
    rows = _rows(placed, x)
    some = rows[:, torch.arange(min(rows.shape[1], SAMPLES)) * 2654435761 % rows.shape[1]]
    lower, upper = dobi(some, bits, ends=rows.aminmax(dim=1))
    upper = torch.maximum(upper, lower + 1e-6 * lower.abs() + 1e-12)  # constant tensors
    done = quantized(rows, lower[:, None], upper[:, None], bits)
    dim = getattr(placed.quantizer, "dim", None)
    return done.reshape(x.shape) if dim is None else done.unflatten(1, x.movedim(dim, 0).shape[1:]).movedim(0, dim)


def scores(net: nn.Module, images: Sequence[Tensor], widths: Sequence[int], seed: int = 0) -> list[Rated]:
    """Rate every site by gradients.

    Args:
        net: made by ``prepare``, with full-precision weights.
        images: (1, C, H, W) each; one random direction for each.
        widths: bits to rate; each site at those that its quantizer can have, without any it is left out.
        seed: of the directions.
    """
    sites = {placed.site.label: placed for placed in sites_to_rate(net) if _widths(placed, widths)}
    full = full_precision(net).requires_grad_(True)
    slots = {p.site.label: p.quantizer for p in network_sites(full) if p.site.label in sites}
    seen: dict[str, Tensor] = {}

    def watch(label: str):
        def hook(_: nn.Module, given: tuple, result: Tensor) -> Tensor:
            seen[label] = result.view_as(result)  # a tensor of its own: the same one may pass several sites
            seen[label].retain_grad()
            return seen[label]

        return hook

    hooks = [slot.register_forward_hook(watch(label)) for label, slot in slots.items()]
    totals = {label: dict.fromkeys(_widths(placed, widths), 0.0) for label, placed in sites.items()}
    sizes, generator = dict.fromkeys(sites, 0), torch.Generator().manual_seed(seed)
    try:
        for image in images:
            seen.clear()
            out = full(image)
            direction = torch.randn(out.shape, generator=generator).to(out)
            full.zero_grad()
            (out * direction).sum().backward()
            spread = out.detach().var().item() * out.numel()
            for label, x in seen.items():
                if x.grad is None:
                    continue
                sizes[label] = x.numel()
                for bits in totals[label]:
                    change = _rounded(sites[label], x.detach(), bits) - x.detach()
                    totals[label][bits] += (x.grad * change).sum().square().item() / spread / len(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [_rated(placed, sizes[label], totals[label]) for label, placed in sites.items() if sizes[label]]


@torch.no_grad()
def measured(net: nn.Module, images: Sequence[Tensor], widths: Sequence[int]) -> list[Rated]:
    """Rate every site by quantizing it alone: a forward pass for each site, width and image."""
    full = full_precision(net)
    slots = {p.site.label: p.quantizer for p in network_sites(full)}
    wanted = [full(image) for image in images]
    found = []
    for placed in sites_to_rate(net):
        sizes: list[int] = []
        costs = {}
        for bits in _widths(placed, widths):

            def hook(_, given: tuple, result: Tensor, placed=placed, bits=bits, sizes=sizes) -> Tensor:
                sizes.append(result.numel())
                return _rounded(placed, result, bits)

            handle = slots[placed.site.label].register_forward_hook(hook)
            try:
                errors = [  # eval() forgets the weights' values of the last pass
                    ((full.eval()(image) - out).square().mean() / out.var()).item()
                    for image, out in zip(images, wanted, strict=True)
                ]
            finally:
                handle.remove()
                full.eval()
            costs[bits] = sum(errors) / len(errors)
        if sizes:
            found.append(_rated(placed, sizes[0], costs))
    return found


def _rated(placed: PlacedSite, size: int, costs: Mapping[int, float]) -> Rated:
    site = placed.site
    return Rated(site.label, site.name, site.kind, size, dict(costs))


def allocate(rated: Sequence[Rated], average: float) -> dict[str, int]:
    """Label -> bits, of least total cost with a given average over all values (greedy; costs are made convex by that).

    Args:
        rated: sites, with the widths to choose from.
        average: bits of a value.

    Raises:
        ValueError: the average lies below that of the smallest or above that of the largest widths.
    """
    values = sum(r.size for r in rated)
    least, most = (sum(end(r.costs) * r.size for r in rated) / values for end in (min, max))
    if not least <= average <= most:
        widths = sorted({bits for r in rated for bits in r.costs})
        raise ValueError(
            f"an average of {average} bits cannot be made of {', '.join(map(str, widths))} bits, "
            f"which reach from {least:.2f} to {most:.2f} at these sites"
        )
    chosen = {r.label: min(r.costs) for r in rated}
    left = (average - least) * values
    while True:
        steps = []
        for r in rated:
            here = chosen[r.label]
            for bits in (b for b in r.costs if b > here):
                price = (bits - here) * r.size
                gain = r.costs[here] - r.costs[bits]
                if price <= left and gain > 0:
                    steps.append((gain / price, r.label, bits, price))
        if not steps:
            return chosen
        _, label, bits, price = max(steps)
        chosen[label] = bits
        left -= price


def average_bits(rated: Sequence[Rated], chosen: Mapping[str, int]) -> float:
    """Bits of a value, over all values of the sites that have bits in ``chosen``."""
    sizes = {r.label: r.size for r in rated if r.label in chosen}
    return sum(chosen[label] * size for label, size in sizes.items()) / sum(sizes.values())


def by_blocks(net: nn.Module, images: Sequence[Tensor], share: float = 0.05) -> dict[str, int]:
    """Label of a weight -> 3, 2 or 1 bits, by the sum of Quant-dLLM's Z.

    Args:
        net: made by ``prepare``, with full-precision weights.
        images: calibration images.
        share: of the weights that get three bits, and of those that get one.

    Raises:
        ValueError: a weight's quantizer cannot have one of these widths.
    """
    known = places(net)
    weights = [p for p in sites_to_rate(net) if p.site.operand == "weight" and p.site.name in known]
    for placed in weights:
        if not {1, 2, 3} <= {*placed.quantizer.bit_widths}:
            raise ValueError(
                f"{placed.site.label}: {type(placed.quantizer).__name__} cannot have each of 1, 2 and 3 bits, which ABMP shares out; "
                "AnyOrder and MinMax can"
            )
    names = [placed.site.name for placed in weights]
    sums = {
        f"{name}.weight": sensitivity(*matrices_of(known[name], gram)).sum().item()
        for name, gram in input_grams(net, images, names)
    }
    order = sorted(sums, key=sums.get)
    count = max(1, round(share * len(order)))
    return {label: 1 if i < count else 3 if i >= len(order) - count else 2 for i, label in enumerate(order)}
