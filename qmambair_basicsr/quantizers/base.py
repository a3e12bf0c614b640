"""The contract of every quantizer.

A quantizer maps a floating-point tensor onto an affine grid of at most ``2**bits`` levels::

    codes, scale, zero = quantizer.to_int(x)     # codes: int32 in [qmin, qmax]
    quantizer(x) == (codes - zero) * scale       # bit for bit, broadcasting scale and zero

``zero`` is the code of the real value 0 and need not be an integer: with ``offset = zero * scale`` a
quantizer computes ``codes = clamp(round((x + offset) / scale), qmin, qmax)`` (two exceptions place their
code borders elsewhere: RFA and N2UQ), which exports as an addition in front of a symmetric Q/DQ pair.
A quantizer whose output is clamped once more (``DLS`` with ``mode: official``) has ``affine = False`` and
returns the bounds from :meth:`Quantizer.output_bounds`; :meth:`Quantizer.dequantize` applies them.

Whoever stores or reads codes asks :meth:`Quantizer.encode`, which also says how they become values (``encoded.py``). A
quantizer whose codes are not ``(codes - zero) * scale`` implements it instead of ``to_int`` and names their ``kind``.

Life cycle: ``prepare`` builds it uninitialised; calibration sets ``calibrating`` and shows it batches
(:meth:`Quantizer.observe` keeps the running mean, or the extremes, of the initial values); afterwards ``initialized`` is true.
Without calibration the first *training* forward initialises from that batch, which is fine on one process
but makes DDP replicas differ, so calibrate first. Evaluating an uninitialised quantizer raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops.dls import DLSItem
from ..ops.limits import CALIBRATION, full_precision, limited
from ..ops.lsq import LSQItem
from ..ops.rfa import RFAItem
from ..ops.rounding import Rounding
from .encoded import AffineCodes, Encoded
from .forms import DynamicForm, StaticForm
from .groups import Groups
from .site import ACTIVATION, ROLES, Site
from .spec import Option, SpecError, check_bits


class UncalibratedError(RuntimeError):
    """A quantizer was used before it was calibrated, trained or loaded."""


class Quantizer(nn.Module):
    """Base class: bookkeeping, calibration and diagnostics; a subclass adds the arithmetic.

    A subclass declares ``bit_widths`` and ``options``, creates its parameters with their final shapes in
    ``__init__`` and implements :meth:`estimate`, :meth:`quantize`, :meth:`to_int` and :meth:`curve`.

    Args:
        bits: bit-width; one of ``bit_widths``.
        site: what it quantizes: role, channels, place in the network (for messages); by default an activation of
            which nothing is known.

    Attributes:
        qmin, qmax: smallest and largest code.
        initialized: bool buffer (); whether the parameters mean something.
        observed: int64 buffer (); calibration batches seen.
        calibrating: plain flag set during calibration.
        dynamic: whether the grid depends on the tensor being quantized (DLS) and not on parameters alone.
        fixed_range: whether the range is a constant, so that the output does not scale with the input.
        roles: which roles of sites it can take.
        affine: whether ``forward`` is ``(codes - zero) * scale`` with no clamp after it.
        kind: how its codes become values, see ``encoded.py``.
        extremes: parameter -> ``torch.minimum`` or ``torch.maximum``, for those that start from the extremes over all
            calibration batches instead of from the mean over batches.
        cut: how the tensor is cut into groups with a step each (``groups.py``); None where it is not.
    """

    bit_widths: ClassVar[tuple[int, ...]] = tuple(range(2, 9))
    options: ClassVar[dict[str, Option]] = {}
    roles: ClassVar[tuple[str, ...]] = ROLES
    dynamic: bool = False
    fixed_range: ClassVar[bool] = False
    affine: bool = True
    kind: type[Encoded] = AffineCodes
    extremes: ClassVar[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {}
    cut: Groups | None = None

    initialized: Tensor
    observed: Tensor

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
    ) -> None:
        super().__init__()
        check_bits(bits, self.bit_widths, f"{type(self).__name__}.bits")
        if site.role not in self.roles:
            allowed = ", ".join(self.roles)
            raise SpecError(f"{type(self).__name__}: cannot quantize a {site.role!r}; possible: {allowed}.")
        self.bits = bits
        self.site = site
        self.calibrating = False
        self.first_batch_only = False  # the release's way: later calibration batches change nothing
        self.qmin, self.qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        # read once, then remembered: looking at the buffer stalls a GPU at every forward
        self._ready = False
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("observed", torch.tensor(0, dtype=torch.int64))

    @classmethod
    def impossible(cls, bits: int, options: Mapping[str, Any]) -> str | None:
        """Why options that are right by themselves do not go with so many bits; None where they do."""
        return None

    @property
    def role(self) -> str:
        """Role of the site."""
        return self.site.role

    @property
    def copies(self) -> int:
        """Copies of the tensor that the published network would quantize together, see :class:`Site`."""
        return self.site.copies

    # ---- what a subclass implements -------------------------------------------------------------------

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        """Initial values for tensor ``x``: name of a parameter or buffer -> value of its shape.

        Over batches bool values are combined by "or", the others as :attr:`extremes` says or averaged. Called without gradients, with a tensor in
        full precision whose values lie within ``ops.limits.CALIBRATION``.
        """
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x`` (differentiable), parameters as they are. Same shape and dtype."""
        raise NotImplementedError

    def item(self, x: Tensor) -> LSQItem | DLSItem | RFAItem | None:
        """What an operator for many tensors needs to do the whole of :meth:`quantize`; None where it takes more than that.

        A subclass that overrides :meth:`quantize` or ``forward`` alone is not asked (``together.py``).
        """
        return None

    def rounding(self) -> Rounding | None:
        """What is all of :meth:`quantize` for a tensor of any size: a constant grid with one step and the straight-through
        gradients of ``ops.lsq``, attached to the graph; None where it takes more than that.

        Operators that never hold the tensor as a whole round it by this (the states of a scan). A subclass that overrides
        :meth:`quantize` or ``forward`` alone is not asked (``together.py``).
        """
        return None

    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integer form of ``x``.

        Returns:
            ``codes`` int32, shape of ``x``, in [qmin, qmax]; ``scale`` > 0 and ``zero``, floating point,
            broadcastable to ``x``. ``(codes - zero) * scale`` equals ``forward(x)`` exactly (for half
            precision: after the cast to it, as all arithmetic is float32 there).

        Raises:
            UncalibratedError: before initialisation.
            TypeError: a quantizer whose codes mean something else, see :meth:`encode`.
        """
        raise TypeError(f"{self._label()}: its codes are not (codes - zero) * scale; ask encode() for them")

    @torch.no_grad()
    def encode(self, x: Tensor) -> Encoded:
        """Codes of ``x``, and how they become values: ``encode(x).values()`` equals ``forward(x)`` exactly.

        Raises:
            UncalibratedError: before initialisation.
        """
        codes, scale, zero = self.to_int(x)
        if self.cut is not None:
            scale, zero = self.cut.compact(scale), self.cut.compact(zero)
        bounds = self.output_bounds(x)
        return AffineCodes(
            codes, scale.detach(), zero.detach(), None if bounds is None else torch.stack(bounds).detach()
        )

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Continuous counterpart of :meth:`to_int`: the declared surrogate, in plain differentiable PyTorch.

        The gradient of ``forward`` is that of ``(curve + error - zero) * scale``, the rounding error
        ``codes - curve`` held constant. Tests compare with it and check it numerically; ``forward`` does not
        call it.

        Returns:
            ``curve``, shape of ``x``, and ``scale`` and ``zero`` as :meth:`to_int` does.
        """
        raise NotImplementedError

    def output_bounds(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Bounds that ``forward`` clamps the dequantized value to, or None (every affine quantizer)."""
        return None

    def static_form(self) -> StaticForm | None:
        """The constant grid of its activations, for integer networks; None where it has none (see ``forms.py``)."""
        return None

    def dynamic_form(self) -> DynamicForm | None:
        """The rule by which the grid of its activations follows them; None where it has none (see ``forms.py``)."""
        return None

    @torch.no_grad()
    def grid_of(self, x: Tensor) -> Tensor:
        """The grid that ``x`` gets, (G, 4) for G groups with one each: step, offset, lowest and highest code.

        What ``freeze_dls`` takes the means of, for quantizers whose grid follows the tensor.
        """
        _, scale, zero = self.to_int(x)
        step, zero = (t.reshape(-1) for t in torch.broadcast_tensors(scale, zero))
        return torch.stack((step, zero * step, torch.full_like(step, self.qmin), torch.full_like(step, self.qmax)), 1)

    # ---- life cycle -----------------------------------------------------------------------------------

    @torch.no_grad()
    def init_from(self, x: Tensor) -> None:
        """Set the parameters from one tensor (in place, with ``copy_``) and mark them initialised.

        Raises:
            ValueError: when ``x`` is empty or holds NaN or infinity.
        """
        self.observed.zero_()
        self.observe(x)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take one calibration batch into the initial values: their running mean, or the :attr:`extremes`.

        Raises:
            ValueError: when ``x`` is empty or holds NaN or infinity.
        """
        if self.first_batch_only and self.observed > 0:
            return
        if x.numel() == 0 or not bool(torch.isfinite(x).all()):
            what = "an empty tensor" if x.numel() == 0 else "NaN or infinity"
            raise ValueError(f"{self._label()}: cannot calibrate on {what}; look at the layer in front of it")
        self.observed.add_(1)
        weight = 1.0 / self.observed
        first = self.observed == 1
        full = self._full(x.detach())
        own = {state.dtype for state in self.state_dict().values()}  # float64 data may calibrate float32 parameters
        full = limited(full, CALIBRATION, torch.float32 if torch.float32 in own else full.dtype)
        for key, value in self.estimate(full).items():
            state = getattr(self, key)
            value = value.reshape(state.shape).to(state)
            if state.dtype == torch.bool:
                state.copy_((state & ~first) | value)
            else:
                combine = self.extremes.get(key)
                later = state + (value - state) * weight if combine is None else combine(state, value)
                state.copy_(torch.where(first, value, later))
        self.initialized.fill_(True)
        self._ready = True

    def is_initialized(self) -> bool:
        """Whether the parameters were calibrated, trained or loaded."""
        if not self._ready:
            self._ready = bool(self.initialized)
        return self._ready

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x``.

        Calibrating: observes ``x`` and uses the parameters so far; an activation whose range is collected over all
        batches passes unchanged, as its range is known at the end only. Not initialised: initialises from ``x`` in
        training mode.

        Raises:
            UncalibratedError: in eval mode before initialisation.
        """
        if self.calibrating:
            self.observe(x)
            if self.extremes and self.site.role == "act":
                return x
        elif not self.is_initialized():
            if not self.training:
                self._require_initialized()
            self.init_from(x)
        return self.quantize(x)

    def dequantize(self, codes: Tensor, scale: Tensor, zero: Tensor, bounds=None) -> Tensor:
        """Real value of integer codes: ``(codes - zero) * scale``, clamped to ``bounds`` where given."""
        value = (codes - zero) * scale
        return value if bounds is None else torch.minimum(torch.maximum(value, bounds[0]), bounds[1])

    # ---- diagnostics ----------------------------------------------------------------------------------

    @torch.no_grad()
    def health(self, x: Tensor | None = None) -> dict[str, float]:
        """Figures for TensorBoard.

        Args:
            x: an input of this quantizer; without it only what the parameters alone tell is returned.

        Returns:
            Without ``x``: subclass-specific parameter summaries (may be empty). With ``x`` also ``clipped`` (share of
            values outside the grid, 0..1), ``dead_levels`` (number of the 2**bits codes that no value takes) and, where
            codes are affine, ``scale`` and ``offset`` (means, units of x).
        """
        report = self.parameter_health()
        if x is None or not self.is_initialized():
            return report
        x = self._full(x)
        encoded = self.encode(x)
        low, high = encoded.limits(self.qmin, self.qmax)
        used = torch.bincount((encoded.codes - self.qmin).flatten(), minlength=self.qmax - self.qmin + 1)
        report |= {
            "clipped": ((x < low) | (x > high)).float().mean().item(),
            "dead_levels": float((used == 0).sum()),
        }
        if isinstance(encoded, AffineCodes):
            scale, zero = encoded.scale, encoded.zero
            report |= {"scale": scale.mean().item(), "offset": (zero * scale).mean().item()}
        return report

    def parameter_health(self) -> dict[str, float]:
        """The part of :meth:`health` that needs no input."""
        return {}

    def extra_repr(self) -> str:
        return f"bits={self.bits}, role={self.role}"

    # ---- helpers --------------------------------------------------------------------------------------

    def channel_dim(self, option: str) -> int:
        """Dimension of the site's channels, for an ``option`` of the value ``channel``.

        Raises:
            SpecError: the site has none.
        """
        if self.site.channels is None or self.site.channel_dim is None:
            raise SpecError(f"{self._label()}: {option} 'channel' is not possible, this site has no channels")
        return self.site.channel_dim

    def _constant(self, value: Tensor) -> Tensor:
        """A function of the input that the declared surrogate takes as a constant."""
        return value.detach()

    @staticmethod
    def _full(x: Tensor) -> Tensor:
        """Half precision as float32, which is what all arithmetic here uses."""
        return full_precision(x)

    def _label(self) -> str:
        return f"{type(self).__name__} quantizer {self.site.label or '(unnamed)'}"

    def _require_initialized(self) -> None:
        if not self.is_initialized():
            raise UncalibratedError(
                f"{self._label()} was never calibrated. Calibrate the network, train it, or load a checkpoint "
                "of the quantized network before evaluating it."
            )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._ready = False
        super()._load_from_state_dict(*args, **kwargs)
