"""Integer codes of the activations of a network, as it runs: of a fake-quantized one and of its integer form alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..layers.sites import activation_sites
from .grids import DynamicGrid, StaticGrid

NO_CODE = np.iinfo(np.int16).min
"""Stands in captured codes where a quantizer was given NaN or infinity, which have no code."""


def codes_or_none(quantizer: nn.Module, x: Tensor) -> np.ndarray:
    """The quantizer's codes of ``x`` as int16, ``NO_CODE`` where a value is not finite."""
    return _marked(quantizer.encode(x).codes, x)


def equal_codes(a: np.ndarray, b: np.ndarray) -> int:
    """How many codes are equal; ``NO_CODE`` and NaN equal nothing."""
    return int(((a == b) & (a != NO_CODE)).sum())


def captured_codes(net: nn.Module, image: Tensor) -> dict[str, list[np.ndarray]]:
    """Codes of every activation quantizer of a network run on an image, one int16 array per call, by name.

    ``NO_CODE`` stands where the quantizer was given NaN or infinity.

    Args:
        net: fake-quantized, or from ``lower``: then its grids go by the names of the quantizers they stand for.
        image: (B, C, H, W) in the precision of the network.
    """
    seen: dict[str, list[np.ndarray]] = {}

    def watch(name: str, codes_of: Callable) -> Callable:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], *output) -> None:
            seen.setdefault(name, []).append(codes_of(inputs[0], *output))

        return hook

    handles = []
    for placed in activation_sites(net):
        quantizer = placed.quantizer
        codes_of = watch(placed.name, lambda x, quantizer=quantizer: codes_or_none(quantizer, x))
        handles.append(quantizer.register_forward_pre_hook(codes_of))
    for grid in {module for module in net.modules() if isinstance(module, (StaticGrid, DynamicGrid))}:
        handles.append(grid.register_forward_hook(watch(grid.site, lambda x, codes: _marked(codes.data, x))))
    try:
        with torch.no_grad():
            net.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    return seen | _joined(net, seen)


def _marked(codes: Tensor, x: Tensor) -> np.ndarray:
    return codes.to(torch.int16).masked_fill_(~torch.isfinite(x), NO_CODE).numpy()


def _joined(net: nn.Module, seen: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Codes of grids that an integer network gives a tensor slice by slice, all slices together."""
    joined = {}
    for grid in net.modules():
        if isinstance(grid, StaticGrid) and grid.slices is not None:
            calls = seen.get(grid.site, [])
            joined[grid.site] = [np.stack(calls[i : i + grid.slices], -2) for i in range(0, len(calls), grid.slices)]
    return joined
