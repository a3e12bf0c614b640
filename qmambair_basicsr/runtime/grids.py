"""Grids of a lowered network as the kernels take them: float32 (4,), constant or written by a kernel for each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..lowering.grids import Dequantized, DynamicGrid, StaticGrid
from ..ops.glue.native import Rule


class NotFused(Exception):
    """A block keeps its generic form; the message says why."""


def require(module: nn.Module, kind: type[nn.Module]) -> None:
    """Whether a part is of the one type that a form is written for.

    Raises:
        NotFused: it is not.
    """
    if type(module) is not kind:
        raise NotFused(f"{type(module).__name__} has no form as a whole")


class NativeGrid:
    """One grid for the whole tensor.

    Attributes:
        values: (4,) float32: step, shift, lowest and highest code; written by the kernels where the grid follows the image.
        zero: what is added to a code in a byte.
        bits: of its codes.
        rule: how the grid follows from statistics; None for a constant one.
        form: the rule as the lowered network has it, or None.
        site: dotted name of the quantizer.
    """

    def __init__(self, grid: nn.Module):
        self.site, self.zero, self.rule, self.form = "", 128, None, None
        if isinstance(grid, Dequantized):
            grid = grid.grid
        if isinstance(grid, StaticGrid):
            self.values = _constant(grid)
        elif isinstance(grid, DynamicGrid):
            form = grid.form
            missing = [name for name in ("w", "v", "qmin", "qmax", "cap_share") if not hasattr(form, name)]
            if missing:
                raise NotFused(f"{grid.site}: a grid that follows the image by another rule than DLS's")
            self.rule = Rule(form.w, form.v, form.qmin, form.qmax, form.cap_share)
            self.values, self.form = torch.ones(4), form
        else:
            raise NotFused(f"{getattr(grid, 'site', '') or 'an activation'} keeps full precision")
        self.site, self.zero = grid.site, grid.bound
        self.bits = self.zero.bit_length()

    @property
    def constant(self) -> bool:
        """Whether it is the same for every image."""
        return self.rule is None


def _constant(grid: StaticGrid) -> Tensor:
    if grid.step.numel() != 1:
        raise NotFused(f"{grid.site}: a step per channel")
    if grid.shift is not None and grid.shift.numel() != 1:
        raise NotFused(f"{grid.site}: an offset per channel")
    if grid.entering is not None:
        raise NotFused(f"{grid.site}: something is added in front of the quantizer")
    step = grid.step.reshape(()).double()
    limits = (
        (-128.0, 127.0) if grid.low is None else [(t.double() / step).round().item() for t in (grid.low, grid.high)]
    )
    shift = 0.0 if grid.shift is None else grid.shift.item()
    return torch.tensor([grid.step.item(), shift, *limits])


def per_image(net: nn.Module) -> bool:
    """Whether every image of a batch has the same result as alone: no statistics are those of the whole batch."""
    return all(m.form.per_sample for m in net.modules() if isinstance(m, DynamicGrid))
