"""The codes that a native network computes with, each held against the code of the value that it was made of."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..lowering.capture import NO_CODE, captured_codes
from ..lowering.grids import DynamicGrid, StaticGrid
from ..ops.dls.reference import statistics
from ..ops.integer import Codes, reference
from .network import NativeNetwork
from .program import Fused, Target

GRID_TOLERANCE = 1e-5
"""How far a grid that follows an image may be from that of FP64 statistics, in units of its step and of its shift."""


class Observation(NamedTuple):
    """One call of a quantizer.

    Attributes:
        codes: int16, in the shape that the tensor has in the network; ``NO_CODE`` for NaN and infinity.
        equal: how many are those of the same values, on the same grid, in plain PyTorch.
    """

    codes: np.ndarray
    equal: int


def observed(native: NativeNetwork, image: Tensor) -> dict[str, list[Observation]]:
    """The codes of every quantizer of a native network run on an image, by the name of the quantizer.

    Args:
        native: the network.
        image: (1, C, H, W) float32.
    """
    seen: dict[str, list[Observation]] = defaultdict(list)
    generic: dict[str, list[int]] = defaultdict(list)

    def watch(target: Target, values: Tensor) -> None:
        seen[target.grid.site].append(_observation(target, values))

    def hook(grid: nn.Module, inputs: tuple[Tensor, ...], codes: Codes) -> None:
        generic[grid.site].append(_equal(grid, inputs[0], codes))

    fused = [module for module in native.modules() if isinstance(module, Fused)]
    grids = {module for module in native.modules() if isinstance(module, (StaticGrid, DynamicGrid))}
    handles = [grid.register_forward_hook(hook) for grid in grids]
    for module in fused:
        module.programs.observer = watch
    try:
        captured = captured_codes(native.network, image)
    finally:
        for module in fused:
            module.programs.observer = None
        for handle in handles:
            handle.remove()
    for site, calls in captured.items():
        equal = generic[site]
        each = len(equal) // len(calls)  # a grid that is given a tensor slice by slice is called more often
        seen[site] += [Observation(codes, sum(equal[i * each : (i + 1) * each])) for i, codes in enumerate(calls)]
    return dict(seen)


def _observation(target: Target, values: Tensor) -> Observation:
    grid = target.grid
    step, shift, low, high = grid.values
    wanted = ((values + shift) / step).clamp(low, high).round()
    finite = torch.isfinite(values)
    got = target.data.to(torch.int16) - grid.zero
    equal = int(((wanted == got) & finite).sum())
    if grid.form is not None and not _follows(grid.form, values, grid.values):
        equal = 0
    codes = got.masked_fill(~finite, NO_CODE)
    return Observation((codes if target.layout is None else target.layout(codes)).numpy().copy(), equal)


def _follows(form: nn.Module, values: Tensor, got: Tensor) -> bool:
    """Whether a grid is the one of the values' statistics, up to the rounding of float32."""
    wanted = copy.deepcopy(form).double().grid(statistics(values.double().view(1, -1)))[0]
    difference = (got.double() - wanted).abs()
    near = (difference[:2] <= GRID_TOLERANCE * (wanted[0] + wanted[:2].abs())).all()
    return bool(near and (difference[2:] <= 1).all())  # a bound next to a whole number of steps may be one further


def _equal(grid: nn.Module, x: Tensor, codes: Codes) -> int:
    """How many codes of a grid that runs by itself are those of the reference."""
    if isinstance(grid, DynamicGrid):
        wanted = reference.quantize_rows(x.float(), grid.form.grid, grid.form.per_sample, grid.bound)
    else:
        wanted = reference.quantize(*grid.operands(x))
    finite = torch.isfinite(x)
    return int(((wanted.data == codes.data) & finite).sum())
