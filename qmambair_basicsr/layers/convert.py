"""From fake quantization to integer codes: quantizers whose result no longer depends on anything learned.

``freeze_parameters`` replaces the quantizer of every weight, and of the scan inputs A, D and dt_bias, by its codes.
What only training needs (the thresholds of RFA, the full-precision weights) is gone afterwards; outputs are the same
bit for bit, since ``forward`` of every quantizer equals the values of its codes (``quantizers/encoded.py``).

``freeze_dls`` replaces activation quantizers whose grid follows the tensor (DLS) by constants, the means of the grids
that calibration images led to. That changes outputs; integer engines need it, as their scales must be constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..quantizers import Quantizer, UncalibratedError
from ..quantizers.encoded import AffineCodes, Encoded
from ..quantizers.forms import StaticForm
from ..quantizers.site import ACTIVATION, WEIGHT, Site
from .sites import PlacedSite, activation_sites, parameter_sites, quantizers_of, uncalibrated

LEAST_GROUP = 8
"""Fewest columns whose products are worth a sum of their own; weights with smaller groups take part as exact values."""


class FrozenCodes(Quantizer):
    """A quantized parameter: its codes, and how they become values. Whatever it is given, it returns the values.

    Args:
        bits: bit-width of the codes.
        encoded: codes, in [-2^(bits-1), 2^(bits-1) - 1], and tables; kept as int8 and float32 buffers under the names that
            their kind gives them (``codes``, ``scale``, ``zero``, ``bounds``).
        site: what is quantized.

    Raises:
        ValueError: a code outside that range.
    """

    bit_widths = tuple(range(1, 9))
    codes: Tensor

    def __init__(self, bits: int, encoded: Encoded, site: Site = WEIGHT) -> None:
        super().__init__(bits, site)
        codes = encoded.codes
        if not codes.is_meta and codes.numel() and (codes.min() < self.qmin or codes.max() > self.qmax):
            raise ValueError(
                f"{self._label()}: codes from {codes.min().item()} to {codes.max().item()}, {bits} bits hold "
                f"{self.qmin} to {self.qmax}"
            )
        self.kind = type(encoded)
        self.register_buffer("codes", codes.to(torch.int8))
        tables = encoded.tables()
        for name in self.kind.table_names():
            self.register_buffer(name, tables[name].float() if name in tables else None)
        self.affine = self.kind is AffineCodes and self.bounds is None
        self.initialized.fill_(True)

    @property
    def encoded(self) -> Encoded:
        """The codes with their tables."""
        return self.kind(self.codes, **{name: getattr(self, name) for name in self.kind.table_names()})

    def encode(self, x: Tensor) -> Encoded:
        return replace(self.encoded, codes=self.codes.to(torch.int32).view(x.shape))

    def quantize(self, x: Tensor) -> Tensor:
        return self.encoded.values().view(x.shape).to(x.dtype)

    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.kind is not AffineCodes:
            return super().to_int(x)
        return self.codes.to(torch.int32).view(x.shape), self.scale, self.zero

    def output_bounds(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        bounds = getattr(self, "bounds", None)
        return None if bounds is None else (bounds[0], bounds[1])

    def integer_form(self) -> bool:
        """Whether products with a weight can be summed up as integers: affine codes with a scale for each row at most.

        Weights of three dimensions are stacks of matrices (K, rows, columns).
        """
        return self.kind is AffineCodes and self.encoded.integer_rows(2 if self.codes.ndim == 3 else 1)

    def grouped_form(self) -> bool:
        """Whether they can be summed up as integers for each group of columns, at least ``LEAST_GROUP`` of them."""
        if self.kind is not AffineCodes:
            return False
        return self.integer_form() or self.encoded.integer_groups(2 if self.codes.ndim == 3 else 1, LEAST_GROUP)

    def within_columns(self, begin: int, end: int) -> FrozenCodes:
        """The codes of neighbouring columns (dimension 1) within one group, which then have a scale for each row."""
        width = self.codes.shape[1]

        def one(table: Tensor) -> Tensor:
            if table.ndim < 2 or table.shape[1] == 1:
                return table
            return table[:, begin // -(-width // table.shape[1])].unsqueeze(1)

        bounds = None if self.bounds is None else torch.stack(tuple(map(one, self.bounds)))
        encoded = AffineCodes(self.codes[:, begin:end], one(self.scale), one(self.zero), bounds)
        return FrozenCodes(self.bits, encoded, self.site).to(self.scale.dtype)

    def part(self, index: int) -> FrozenCodes:
        """The codes at one index of the leading dimension, with their tables."""
        return self._reshaped(lambda t: t[index])

    def flattened(self) -> FrozenCodes:
        """Leading two dimensions as one."""
        return self._reshaped(lambda t: t.flatten(0, 1))

    def _reshaped(self, reshape: Callable[[Tensor], Tensor]) -> FrozenCodes:
        made = FrozenCodes(self.bits, self.encoded.reshaped(reshape), self.site)
        return made.to(self.scale.dtype)


class FixedGrid(Quantizer):
    """An activation quantizer with constant step and offset: a DLS after calibration of its grid.

    ``codes = round(clamp((x + offset) / step, lowest, highest))``.

    Args:
        bits: bit-width.
        site: what is quantized.
    """

    grid: Tensor

    def __init__(self, bits: int, site: Site = ACTIVATION) -> None:
        super().__init__(bits, site)
        self.register_buffer("grid", torch.tensor([1.0, 0.0, self.qmin, self.qmax]))

    def set_grid(self, step: float, offset: float, lowest: float, highest: float) -> None:
        """Set the constants (units of x, units of x, codes, codes).

        Raises:
            ValueError: they are no grid of this width; files hold such numbers.
        """
        given = (step, offset, lowest, highest)
        numbers = all(type(v) in (int, float) and abs(v) < 2.0**127 for v in given)  # False for NaN
        grid = torch.tensor(given if numbers else (0.0,) * 4, dtype=torch.float64).float()
        if grid[0] <= 0 or not self.qmin <= lowest <= highest <= self.qmax:
            raise ValueError(
                f"{self._label()}: step {step!r}, offset {offset!r} and codes {lowest!r} to {highest!r} are no grid "
                f"of {self.bits} bits: the step must be positive, the codes within {self.qmin} to {self.qmax}"
            )
        self.grid.copy_(grid)
        self.initialized.fill_(True)

    def quantize(self, x: Tensor) -> Tensor:
        codes, step, zero = self.to_int(x)
        return self.dequantize(codes, step, zero).to(x.dtype)

    @torch.no_grad()
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._require_initialized()
        step, offset, lowest, highest = self.grid
        codes = ((self._full(x) + offset) / step).clamp(lowest, highest).round()
        return codes.to(torch.int32), step, offset / step

    def static_form(self) -> StaticForm:
        step, offset, lowest, highest = self.grid
        return StaticForm(step, offset, lowest.item(), highest.item())


def frozen(placed: PlacedSite) -> FrozenCodes:
    """The codes of a parameter.

    Raises:
        UncalibratedError: its quantizer was never calibrated.
    """
    quantizer = placed.quantizer
    return FrozenCodes(quantizer.bits, quantizer.encode(placed.tensor()), quantizer.site)


@torch.no_grad()
def freeze_parameters(net: nn.Module) -> nn.Module:
    """Replace the quantizers of all parameters by their codes, in place.

    Args:
        net: calibrated or trained network.

    Returns:
        The same object, in eval mode.

    Raises:
        ValueError: nothing in the network is quantized.
        UncalibratedError: a quantizer of the network was never calibrated.
    """
    require_quantized(net)
    for placed in parameter_sites(net.eval()):
        placed.replace(frozen(placed))
    return net


def require_quantized(net: nn.Module) -> None:
    """Raise ValueError for a network without quantizers, UncalibratedError for one that is not calibrated."""
    if not quantizers_of(net):
        raise ValueError(f"{type(net).__name__} is not quantized: give an option file whose network_g has `quant:`.")
    missed = uncalibrated(net)
    if missed:
        raise UncalibratedError(
            f"{len(missed)} quantizers of {type(net).__name__} were never calibrated, first {missed[0]}. Give the "
            "checkpoint of a trained or calibrated quantized network."
        )


def _dynamic(net: nn.Module) -> dict[str, PlacedSite]:
    """Name -> site of every activation whose grid follows the tensor."""
    return {placed.name: placed for placed in activation_sites(net) if placed.quantizer.dynamic}


@torch.no_grad()
def freeze_dls(
    net: nn.Module, batches: Iterable[Tensor], forward: Callable[[nn.Module, Tensor], object] | None = None
) -> list[str]:
    """Replace every dynamic activation quantizer by constants, in place.

    The constants are the means, over all samples of all batches, of the step and the offset each sample got; a side
    of the code range stays closed (see ``DLS``) only if it was for every sample.

    Args:
        net: calibrated or trained network.
        batches: calibration batches, at least one.
        forward: ``forward(net, batch)``; default ``net(batch)``.

    Returns:
        Names of the replaced quantizers.

    Raises:
        ValueError: there was no batch, or a quantizer was not reached.
    """
    dynamic = _dynamic(net)
    seen: dict[str, list[Tensor]] = {name: [] for name in dynamic}

    def watch(name: str, quantizer: Quantizer):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name].append(quantizer.grid_of(inputs[0]).cpu())

        return hook

    handles = [
        placed.quantizer.register_forward_pre_hook(watch(name, placed.quantizer)) for name, placed in dynamic.items()
    ]
    net.eval()
    count = 0
    try:
        for batch in batches:
            net(batch) if forward is None else forward(net, batch)
            count += 1
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise ValueError("freeze_dls: there was no calibration batch; give at least one.")
    constants = {}
    for name in dynamic:
        if not seen[name]:
            raise ValueError(f"freeze_dls: no calibration batch reached {name}.")
        grids = torch.cat(seen[name])
        step, offset = grids[:, :2].double().mean(0).tolist()
        constants[name] = [step, offset, grids[:, 2].amin().item(), grids[:, 3].amax().item()]
    set_constant_grids(net, constants)
    return list(dynamic)


def constant_grids(net: nn.Module) -> dict[str, list[float]]:
    """Step, offset, lowest and highest code of every quantizer that :func:`freeze_dls` made, by name."""
    return {name: q.grid.tolist() for name, q in quantizers_of(net).items() if isinstance(q, FixedGrid)}


def set_constant_grids(net: nn.Module, constants: Mapping[str, Sequence[float]]) -> None:
    """Replace dynamic activation quantizers by given constants, in place; inverse of :func:`constant_grids`.

    Raises:
        ValueError: the network has no dynamic activation quantizer of a name, or the constants are no grid.
    """
    dynamic = _dynamic(net)
    if not isinstance(constants, Mapping):
        raise ValueError(f"constant grids must be a mapping of quantizers to four numbers, got {constants!r:.60}")
    for name, constant in constants.items():
        if not isinstance(constant, Sequence) or len(constant) != 4:
            raise ValueError(f"{name}: a constant grid is step, offset, lowest and highest code, got {constant!r:.60}")
        if name not in dynamic:
            raise ValueError(
                f"{type(net).__name__} has no quantizer {name} whose grid follows the tensor and could be a constant."
            )
        quantizer = dynamic[name].quantizer
        learned = (t for t in (*quantizer.parameters(), *quantizer.buffers()) if t.is_floating_point())
        state = next(learned, torch.zeros(()))
        fixed = FixedGrid(quantizer.bits, quantizer.site)
        fixed.set_grid(*constant)
        dynamic[name].replace(fixed.to(state.device, state.dtype))
