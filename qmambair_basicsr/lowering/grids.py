"""Grids of activations in an integer network: tensor -> :class:`Codes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import integer
from ..ops.integer import Codes
from ..ops.onnx_nodes import cast
from ..ops.rounding import Rounding
from ..quantizers import Quantizer
from ..quantizers.forms import DynamicForm, StaticForm


class LoweringError(ValueError):
    """A network cannot be turned into integers; the message says which part and what to do."""


class StaticGrid(nn.Module):
    """A constant grid.

    Args:
        form: the grid.
        bound: largest magnitude of a code.
        site: dotted name of the quantizer that it stands for.
    """

    def __init__(self, form: StaticForm, bound: int, site: str = ""):
        super().__init__()
        self.bound, self.site, self.dim = bound, site, form.dim
        self.codes = int(form.lowest), int(form.highest)
        self.slices: int | None = None  # how many slices of dimension -2 of a tensor it is given one by one
        step, kind = form.step.detach(), form.step.dtype
        offset = torch.zeros_like(step) if form.offset is None else form.offset.detach()
        shape = (-1,) if step.numel() > 1 else ()
        offset = offset.reshape((-1,) if offset.numel() > 1 else ())
        # products in float64, so that FP32 limits are rounded once
        limits = (torch.tensor(code) * step.double() for code in (form.lowest, form.highest))
        self.register_buffer("step", step.reshape(shape).clone())
        self.register_buffer("zero_point", torch.zeros_like(self.step, dtype=torch.int8))
        # tensors, not numbers: blocks whose tensors alone differ are traced once (``artifacts/onnx/units.py``)
        self.register_buffer("shift", offset.clone() if bool(offset.any()) else None)
        clips = (form.lowest, form.highest) != (-128, 127)  # int8 itself
        for limit, value in zip(("low", "high"), limits, strict=True):
            self.register_buffer(limit, value.to(kind).reshape(shape) if clips else None)
        entering = None if form.entering is None else form.entering.detach().clone()
        self.entering_dim = form.entering_dim
        self.register_buffer("entering", entering)

    def rounding(self) -> Rounding | None:
        """What :meth:`forward` and ``dequantize`` do with a tensor, where one step serves all of it; else None."""
        numbers = (self.step, self.shift, self.entering)
        if any(t is not None and t.numel() > 1 for t in numbers) or self.entering is not None:
            return None
        offset = None if self.shift is None else self.shift.reshape(1)
        return Rounding(self.step.reshape(1), offset, *self.codes)

    @property
    def offset(self) -> Tensor | float:
        """The excess of the part ``step * code`` over the value, in units of the activation: (), or (C,) along ``dim``."""
        return 0.0 if self.shift is None else self.shift

    def forward(self, x: Tensor) -> Codes:
        return integer.quantize(*self.operands(x))

    def operands(self, x: Tensor) -> tuple:
        """What ``integer.quantize`` is called with."""
        x = cast(x, self.step.dtype)
        if self.entering is not None:
            x = x + _along(self.entering, self.entering_dim, x)
        step, shift, low, high = (
            t if t is None else _along(t, self.dim, x) for t in (self.step, self.shift, self.low, self.high)
        )
        return x, step, shift, None if low is None else (low, high), self.zero_point, self.bound


def _along(t: Tensor, dim: int | None, x: Tensor) -> Tensor:
    """View of one value, or of one for each index of a dimension of x, that broadcasts to x."""
    if t.numel() == 1:
        return t if t.ndim == 0 else t.reshape(())
    shape = [1] * x.ndim
    shape[dim] = -1
    return t.view(shape)


class DynamicGrid(nn.Module):
    """A grid that follows the statistics of each tensor, or of each sample."""

    offset = 0.0

    def __init__(self, form: DynamicForm, bound: int, site: str = ""):
        super().__init__()
        self.form, self.bound, self.site = form, bound, site

    def forward(self, x: Tensor) -> Codes:
        half = x.dtype in (torch.float16, torch.bfloat16)  # of an FP16 network: statistics are float32
        return integer.quantize_rows(x.float() if half else x, self.form.grid, self.form.per_sample, self.bound)


class Unquantized(nn.Module):
    """A site kept in full precision."""

    offset = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x


class Dequantized(nn.Module):
    """The value on the grid itself, for floating-point operators: a scan, a layer with a full-precision weight, a product
    along channels that each have a step of their own."""

    offset = 0.0

    def __init__(self, grid: nn.Module):
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return integer.dequantize(self.grid(x))


def grid_of(quantizer: Quantizer, products: bool, groups: bool = False) -> nn.Module:
    """The grid of an activation quantizer.

    Args:
        quantizer: calibrated.
        products: codes are multiplied and summed up, which takes one step for all; with a step per channel, values are.
        groups: or one for each group of channels (``weights.py``).

    Raises:
        LoweringError: a quantizer that has no form (``quantizers/forms.py``).
    """
    if quantizer.bits == 32:
        return Unquantized()
    label, bound = quantizer.site.label or "an activation", 2 ** (quantizer.bits - 1)
    static, dynamic = quantizer.static_form(), quantizer.dynamic_form()
    if static is not None:
        grid = StaticGrid(static, bound, quantizer.site.quantizer_path)
        apart = static.step.numel() > 1 and not (groups and quantizer.cut is not None)
        return Dequantized(grid) if products and apart else grid
    if dynamic is not None:
        return DynamicGrid(dynamic, bound, quantizer.site.quantizer_path)
    mode = f" (mode: {quantizer.mode})" if quantizer.dynamic and hasattr(quantizer, "mode") else ""
    way_out = "`tools.export --dls frozen` makes its grid a constant" if quantizer.dynamic else "use another quantizer"
    raise LoweringError(
        f"{label}: {type(quantizer).__name__}{mode} has neither a constant grid nor one that follows from statistics "
        f"(static_form and dynamic_form, see quantizers/forms.py), which activations of an integer network need; {way_out}"
    )
