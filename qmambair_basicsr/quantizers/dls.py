"""DLS: dynamic-balancing learnable scalar, the quantizer of the scan's inputs in Q-MambaIR.

"Q-MambaIR", section 3.3 (eq. 6, supplement eq. 9); the authors' release calls it ``DDA_Quant``.

================  ==================================================================  ======================
paper / release   meaning                                                             here
================  ==================================================================  ======================
w1..w4            weights of |mean|, std, min, max of the shifted tensor: the step    ``w`` (4,)
v1..v4            weights of mean, std, min, max of the tensor: the shift             ``v`` (4,)
beta              v . (mean, std, min, max)                                           offset of the grid
alpha             |w . (|mean|, std, min, max) of x + beta|                           step of the grid
signed            false when the first training batch is never negative               ``signed`` (official)
================  ==================================================================  ======================

Paper against release: eq. 6 multiplies by alpha and takes the floor, while the text learns alpha as a range
and beta as -mean. Only the release is consistent: alpha is the step, it divides, floor means round. The
release is followed. Statistics are part of the graph: gradients reach x through them.

``mode: official`` is the release's arithmetic: step = min(max(alpha, 1e-6), (max - min) / 2^n) with a
constant cap; codes unsigned if the data is never negative; output clamped to [min, max] of x, so it is not
wholly on the grid (``affine`` is false, see ``output_bounds``). Where the release returns NaN (constant
tensor, one element) this returns the constant.

``mode: stable`` (default) mends what does not work there:

* a non-negative tensor gets unsigned codes although beta = -mean, so all values below the mean collapse onto
  it. Here codes are always signed, about -beta;
* whenever the cap binds (always at 2 bits on bell-shaped data) all gradients to w vanish. Here the step is the
  smooth minimum (alpha^-4 + cap^-4)^(-1/4) of both, with its exact gradient;
* the final clamp leaves the grid, so integer export is impossible. Here the output is affine. What the clamp
  was good for is kept by leaving out codes on the other side of zero when the data has one sign: the decay
  rates A of the scan stay <= 0, or the recurrence would explode;
* the smallest step is 2^-20 of the largest magnitude instead of 1e-6, so the output scales with the input.

``stats: sample`` (default in stable mode, for activations) takes the statistics of each sample, so a result
does not depend on the batch; ``tensor`` (default in official mode) takes one set for all.

``init`` chooses the starting weights (paper, Table 6), with Q = 2^(n-1) - 1 and N = 2^n - 1. The paper's text
and its table disagree, so there are two conventions:

=====  ======================================  ===============================================
group  convention: text                        convention: grid
=====  ======================================  ===============================================
G1     mean +- 3 std (release; default)        step 3 std / Q,          centre mean
G2     mean +- 4 std                           step 3 std / Q,          centre (max + min) / 2
G3     [min, max]                              step (max - min) / N,    centre mean
G4     mean +- (max - min) / 2                 step (max - min) / N,    centre (max + min) / 2
=====  ======================================  ===============================================

``init: {search: mse}`` (default, stable mode only) then scales that step and moves the centre to where the squared
error on the calibration data is least; ``none`` starts from the group itself, as an ablation of the groups needs.

The step (max - min) / N exceeds the release's cap (max - min) / 2^n, which would hide the difference, so the
cap is widened for these groups: to (max - min) / N (official) or twice that (stable).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ops.dls import DLSItem, dls, dls_together
from ..ops.dls.reference import codes as dls_codes
from ..ops.dls.reference import grid as dls_grid
from ..ops.dls.reference import statistics as dls_statistics
from ..ops.layout import FROM_LAST, TO_LAST, stored_channels_last
from ..ops.limits import CALIBRATION, as_type, limited
from ..ops.lsq import lsq
from ..ops.lsq.reference import codes as lsq_codes
from .base import Quantizer
from .forms import DynamicForm
from .lsq import NEGATIVE
from .lsq_offset import MODE, SEARCH
from .registry import register_quantizer
from .search import SAMPLES, subsample
from .site import ACTIVATION, Site
from .spec import Option
from .ste import scale_grad

INIT = Option(
    {"group": "G1", "convention": "text", "search": "mse"},
    "starting weights (Table 6)",
    keys={
        "group": Option("G1", "initialisation group", choices=("G1", "G2", "G3", "G4")),
        "convention": Option("text", "reading of the paper", choices=("text", "grid")),
        "search": SEARCH,
    },
)
SEARCH_FACTORS = (1.0, 0.67, 0.45, 0.3, 0.2)  # of the group's step
SEARCH_SHIFTS = (0.0, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5)  # of half the grid; of equally good ones, the first
SEARCH_REFINEMENT = (1.0, 0.82, 0.9, 1.1, 1.22)
OFFICIAL_FLOOR = 1e-6
ZERO_CAP = 1e-12  # stands in for a cap of 0, with which the release divides


def initial_weights(bits: int, group: str, convention: str) -> tuple[list[float], list[float], bool]:
    """Starting ``w`` and ``v`` of an initialisation group, and whether its step spans max - min."""
    largest, intervals = 2 ** (bits - 1) - 1, 2**bits - 1
    spanning = group in ("G3", "G4")
    if spanning:
        w = [0.0, 0.0, -1 / intervals, 1 / intervals]
    else:
        deviations = 4.0 if (group, convention) == ("G2", "text") else 3.0
        w = [1 / largest, deviations / largest, 0.0, 0.0]
    middle = group == "G3" if convention == "text" else group in ("G2", "G4")
    v = [0.0, 0.0, -0.5, -0.5] if middle else [-1.0, 0.0, 0.0, 0.0]
    return w, v, spanning


@register_quantizer
class DLS(Quantizer):
    """Quantizer whose grid follows the statistics of the tensor; see the module docstring.

    Args:
        mode: ``stable`` or ``official``.
        stats: ``sample`` or ``tensor``; None for the mode's default. A ``weight`` or ``param`` has no
            samples and always takes ``tensor``.
        init: ``{group: G1..G4, convention: text|grid, search: mse|none}``, each optional.
    """

    dynamic = True
    options: ClassVar = {
        "mode": MODE,
        "stats": Option(None, "statistics per sample or tensor; by mode", choices=("tensor", "sample")),
        "init": INIT,
    }

    def __init__(
        self,
        bits: int,
        site: Site = ACTIVATION,
        *,
        mode: str = "stable",
        stats: str | None = None,
        init: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(bits, site)
        self.mode = mode
        self.affine = mode == "stable"
        wanted = stats or ("sample" if mode == "stable" else "tensor")
        self.stats = wanted if self.role == "act" else "tensor"
        self.first_batch_only = mode == "official"
        chosen = {**INIT.default, **(init or {})}
        self.search = chosen["search"]
        w, v, spanning = initial_weights(bits, chosen["group"], chosen["convention"])
        if not spanning:
            self.cap_share = 1 / 2**bits
        else:
            self.cap_share = (2 if mode == "stable" else 1) / (2**bits - 1)
        self.start = (w, v)
        self.w = nn.Parameter(torch.tensor(w))
        self.v = nn.Parameter(torch.tensor(v))
        self.register_buffer("signed", torch.tensor(True))

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        if self.mode == "official":
            return {"signed": x.amin() < NEGATIVE}
        w, v = x.new_tensor(self.start[0]), x.new_tensor(self.start[1])
        if self.search == "mse":
            w, v = self._least_error(self._full(self._rows(x)), w, v)
        return {"w": w, "v": v}

    def quantize(self, x: Tensor) -> Tensor:
        if self.mode == "stable":
            return dls_together([self.item(x)])[0]
        if stored_channels_last(x):  # the order of the values within a sample does not matter
            return self.quantize(x.permute(TO_LAST)).permute(FROM_LAST)
        rows = self._rows(x)
        full = self._limited(rows)
        step, offset, low, high = self._official_grid(full)
        out = lsq(full, step, offset, qmin=self.qmin, qmax=self.qmax, dim=0)
        return as_type(torch.clamp(out, low[:, None], high[:, None]), x.dtype).view(x.shape)

    def item(self, x: Tensor) -> DLSItem | None:
        if self.mode != "stable":
            return None
        rows = x.shape[0] if self.stats == "sample" else 1
        grad_scale = self._gradient_scale(x, self.qmax)
        return DLSItem(x, self.w, self.v, rows, self.qmin, self.qmax, self.cap_share, grad_scale)

    @torch.no_grad()
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._require_initialized()
        if stored_channels_last(x):  # as in quantize: the same order of sums gives the same bits
            codes, scale, zero = self.to_int(x.permute(TO_LAST))
            return codes.permute(FROM_LAST), scale, zero
        rows = self._limited(self._rows(x))
        if self.mode == "stable":
            _, grid = self._stable(rows)
            step, offset = grid[:, 0], grid[:, 1]
            integers = dls_codes(rows, grid)
        else:
            step, offset, _, _ = self._official_grid(rows)
            integers = lsq_codes(rows, step, offset, self.qmin, self.qmax, 0)
        return integers.to(torch.int32).view(x.shape), self._spread(step, x), self._spread(offset / step, x)

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = self._limited(self._rows(x))
        if self.mode == "stable":
            stats = torch.stack(_statistics(rows), dim=1)
            grid = dls_grid(stats, self.w, self.v, self.qmin, self.qmax, self.cap_share)
            step, offset, lowest, highest = grid.unbind(1)
            step = scale_grad(step, self._gradient_scale(rows, self.qmax))
        else:
            step, offset, _, _ = self._official_grid(rows)
            lowest, highest = torch.full_like(step, self.qmin), torch.full_like(step, self.qmax)
        curve = torch.clamp((rows + offset[:, None]) / step[:, None], lowest[:, None], highest[:, None])
        return curve.view(x.shape), self._spread(step, x), self._spread(offset / step, x)

    @torch.no_grad()
    def output_bounds(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.affine:
            return None
        low, high = self._limited(self._rows(x)).aminmax(dim=1)
        return self._spread(low, x), self._spread(high, x)

    @torch.no_grad()
    def grid_of(self, x: Tensor) -> Tensor:
        """Grid that ``x`` gets, (G, 4) for G groups of statistics: step, offset, lowest and highest code."""
        rows = self._limited(self._rows(x))
        if self.mode == "stable":
            return self._stable(rows)[1]
        step, offset, _, _ = self._official_grid(rows)
        return torch.stack((step, offset, torch.full_like(step, self.qmin), torch.full_like(step, self.qmax)), dim=1)

    def dynamic_form(self) -> DynamicForm | None:
        return _StableGrid(self) if self.mode == "stable" else None

    def parameter_health(self) -> dict[str, float]:
        names = ("mean", "std", "min", "max")
        pairs = (("w", self.w), ("v", self.v))
        return {f"{p}_{n}": value for p, tensor in pairs for n, value in zip(names, tensor.tolist(), strict=True)}

    def _least_error(self, rows: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The multiple of ``w``, and the shift by a part of a step, with the least squared error on ``rows``.

        Judged on about ``SAMPLES`` values, the error of each row relative to its variance.
        """
        stats = dls_statistics(rows)
        some = subsample(rows, -(-SAMPLES // rows.shape[0]))
        unit = stats[:, 1:2].clamp_min(torch.finfo(rows.dtype).tiny)
        along = w * w.new_tensor([0.0, 1.0, 1.0, 1.0])  # |mean| of the shifted tensor is near 0

        def error(factor: float, shift: float) -> float:
            grid = dls_grid(stats, factor * w, v + shift * factor * along, self.qmin, self.qmax, self.cap_share)
            step, offset = grid[:, :1], grid[:, 1:2]
            value = dls_codes(some, grid).sub_(offset / step).mul_(step)
            return ((value - some) / unit).square().mean().item()

        shifts = [share * -self.qmin for share in SEARCH_SHIFTS]
        factor, shift = min(itertools.product(SEARCH_FACTORS, shifts), key=lambda pair: error(*pair))
        factor = min((factor * ratio for ratio in SEARCH_REFINEMENT), key=lambda f: error(f, shift))
        return factor * w, v + shift * factor * along

    def _rows(self, x: Tensor) -> Tensor:
        """(G, M): one row per group of statistics."""
        return x.reshape(x.shape[0] if self.stats == "sample" else 1, -1)

    def _limited(self, rows: Tensor) -> Tensor:
        """Rows in full precision; the release's arithmetic needs room for squares, the operator limits values itself."""
        full = self._full(rows)
        if self.mode == "stable":
            return full if full.dtype == self.w.dtype else limited(full, dtype=self.w.dtype)
        return limited(full, CALIBRATION, self.w.dtype)

    def _spread(self, value: Tensor, x: Tensor) -> Tensor:
        return value.view(-1, *[1] * (x.ndim - 1)) if value.numel() > 1 else value.reshape(())

    def _gradient_scale(self, rows: Tensor, largest: Tensor | float) -> Tensor | float:
        return (rows.numel() * self.copies * largest) ** -0.5

    def _stable(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return dls(
            rows,
            self.w,
            self.v,
            qmin=self.qmin,
            qmax=self.qmax,
            cap_share=self.cap_share,
            grad_scale=self._gradient_scale(rows, self.qmax),
        )

    def _official_grid(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step, offset, minimum and maximum of each row, (G,) each, attached to the graph."""
        mean, std, low, high = _statistics(rows)
        v, w = self.v, self.w
        beta = v[0] * mean + v[1] * std + v[2] * low + v[3] * high
        mean_, std_, low_, high_ = _statistics(rows + beta[:, None])
        alpha = (w[0] * mean_.abs() + w[1] * std_ + w[2] * low_ + w[3] * high_).abs()
        largest = torch.where(self.signed, float(self.qmax), float(self.qmax - self.qmin)).to(rows.dtype)
        alpha = scale_grad(alpha, self._gradient_scale(rows, largest)).clamp_min(OFFICIAL_FLOOR)
        cap = ((high - low) * self.cap_share).detach().clamp_min(ZERO_CAP)
        step = torch.minimum(alpha, cap)
        # codes 0..2^n - 1 are the signed ones moved by 2^(n-1) steps
        return step, beta + torch.where(self.signed, 0.0, float(self.qmin)) * step, low, high


class _StableGrid(DynamicForm):
    """The rule of ``mode: stable``, with the weights that the quantizer has now."""

    def __init__(self, quantizer: DLS):
        super().__init__(quantizer.stats == "sample")
        self.qmin, self.qmax, self.cap_share = quantizer.qmin, quantizer.qmax, quantizer.cap_share
        self.register_buffer("w", quantizer.w.detach().clone())
        self.register_buffer("v", quantizer.v.detach().clone())

    def grid(self, statistics: Tensor) -> Tensor:
        return dls_grid(statistics, self.w, self.v, self.qmin, self.qmax, self.cap_share)


def _statistics(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, unbiased std (0 for one value), minimum and maximum of each row, differentiable."""
    std = rows.std(dim=1) if rows.shape[1] > 1 else rows.new_zeros(rows.shape[0])
    return rows.mean(dim=1), std, rows.amin(dim=1), rows.amax(dim=1)
