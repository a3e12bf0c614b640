"""Statistics of any sites of a network, for whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.sites import PlacedSite, network_sites, quantizers_of
from ..strict import unknown
from .calibrate import evaluation
from .observers import Observer


@torch.no_grad()
def collect(
    net: nn.Module,
    batches: Iterable[Any],
    observers: Mapping[str, Callable[[PlacedSite], Observer | None]],
    *,
    quantized: bool = False,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> dict[str, Any]:
    """Run batches through a network in evaluation mode and observe the tensors at its sites, before they are quantized.

    Args:
        net (nn.Module): Network made by ``prepare``; sites with 32 bits can be observed too.
        batches (Iterable): What to run, at least one batch.
        observers (Mapping): Pattern of site names (as in ``quant.overrides``) -> function that makes the observer of a
            site, such as ``{"*.in_proj": lambda placed: GramObserver()}``; None leaves the site alone. The last pattern
            that matches decides.
        quantized (bool): Quantize while observing (the network must be calibrated); by default it computes in full
            precision.
        forward (Callable | None): ``forward(net, batch)``; default ``net(batch)``.

    Returns:
        dict: Label of a site (``Site.label``) -> what its observer finished with.

    Raises:
        ValueError: No batch, a site that no batch reached, a pattern that no site matches, or NaN at a site.
    """
    placed = {site.site.label: site for site in network_sites(net)}
    chosen: dict[str, Observer | None] = {}
    for pattern, make in observers.items():
        matching = [site for site in placed.values() if site.site.matches(pattern)]
        if not matching:
            names = sorted({site.site.name for site in placed.values()})
            raise ValueError(unknown("collect", "site pattern", pattern, names))
        chosen |= {site.site.label: make(site) for site in matching}
    chosen = {label: observer for label, observer in chosen.items() if observer is not None}
    with evaluation(net), full_precision(net, not quantized):
        hooks = []
        for label, observer in chosen.items():
            site = placed[label]
            if site.site.parameter is not None:
                _update(observer, site.tensor(), label)
            else:
                hooks.append(site.quantizer.register_forward_pre_hook(_watch(observer, label)))
        try:
            for batch in batches:
                net(batch) if forward is None else forward(net, batch)
        finally:
            for hook in hooks:
                hook.remove()
    missed = [label for label, observer in chosen.items() if not observer.batches]
    if missed:
        raise ValueError(f"collect: no batch reached {len(missed)} sites: {', '.join(missed[:10])}")
    return {label: observer.finish() for label, observer in chosen.items()}


def _update(observer: Observer, x: Tensor, label: str) -> None:
    try:
        observer.update(x)
    except ValueError as err:
        raise ValueError(f"{label}: {err}") from err


def _watch(observer: Observer, label: str) -> Callable[[nn.Module, tuple], None]:
    def hook(_: nn.Module, inputs: tuple) -> None:
        _update(observer, inputs[0], label)

    return hook


@contextmanager
def full_precision(net: nn.Module, active: bool) -> Iterator[None]:
    """All quantizers pass their input on."""
    quantizers = list(quantizers_of(net).values()) if active else []
    for quantizer in quantizers:
        quantizer.forward = _unchanged  # an instance attribute hides the method of the class
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer.forward


def _unchanged(x: Tensor) -> Tensor:
    return x
