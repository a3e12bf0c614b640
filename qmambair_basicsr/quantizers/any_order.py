"""AnyOrder: weights as sums of signs with scales for rows and columns, as many orders as bits (Quant-dLLM).

=============  ============================================================  =====================
paper          meaning                                                       here
=============  ============================================================  =====================
W^             sum_k (a_r a_c^T)_k * B_k, B_k in {-1, 1}                     ``forward(...)``
a_r, a_c       scales of the rows and columns of order k                     ``rows``, ``columns``
K              number of orders                                              ``bits``
=============  ============================================================  =====================

Rows are the output channels (of each direction, for a stack of matrices), columns what one of them is multiplied with: a
convolution's kernels are flattened. Each weight gets the signs whose sum is nearest to it. The start is greedy and then
alternating least squares with equal weights (:func:`fit`); ``ptq/quant_dllm.py`` fits with weights from calibration images.
Activations cannot be quantized like this. The gradient passes to the weight unchanged, and to the scales as they enter.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Quantizer
from .encoded import BinaryOrders
from .registry import register_quantizer
from .site import WEIGHT, Site
from .ste import snap

EPS = 1e-12


def sign_sums(rows: Tensor, columns: Tensor) -> Tensor:
    """Every sum of K signs times scales, (2^K, O, C); bit k of the index says whether sign k is +1.

    Args:
        rows: (K, O).
        columns: (K, C).
    """
    scales = rows[:, :, None] * columns[:, None, :]  # (K, O, C)
    index = torch.arange(2 ** len(rows), device=rows.device)
    signs = torch.stack([((index >> k) & 1) * 2 - 1 for k in range(len(rows))], 1).to(rows.dtype)  # (2^K, K)
    return torch.einsum("sk,koc->soc", signs, scales)


def nearest_signs(weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Index into :func:`sign_sums` of the sum nearest to each weight, (O, C) int64."""
    return (sign_sums(rows, columns) - weight).abs().argmin(0)


def fit(weight: Tensor, orders: int, importance: Tensor | None = None, sweeps: int = 20) -> tuple[Tensor, Tensor]:
    """Scales of rows and columns of each order: greedy, then alternating weighted least squares.

    Args:
        weight: (O, C).
        orders: K.
        importance: weight of each element's squared error, (O, C); None for 1.
        sweeps: rounds of the alternation.

    Returns:
        rows (K, O) and columns (K, C).
    """
    weights = torch.ones_like(weight) if importance is None else importance
    rest, rows, columns, signs = weight.clone(), [], [], []
    for _ in range(orders):
        magnitude = rest.abs()
        row = magnitude.mean(1).clamp_min(EPS)
        column = (magnitude / row[:, None]).mean(0)
        sign = torch.where(rest < 0, -1.0, 1.0).to(weight.dtype)
        rest = rest - row[:, None] * column * sign
        rows.append(row)
        columns.append(column)
        signs.append(sign)
    for _ in range(sweeps):
        for k in range(orders):
            others = sum(
                (rows[j][:, None] * columns[j] * signs[j] for j in range(orders) if j != k), torch.zeros_like(weight)
            )
            target = weights * (weight - others) * signs[k]
            rows[k] = (target @ columns[k]) / (weights @ columns[k].square() + EPS)
            columns[k] = (target.T @ rows[k]) / (weights.T @ rows[k].square() + EPS)
        index = nearest_signs(weight, torch.stack(rows), torch.stack(columns))
        signs = [(((index >> k) & 1) * 2 - 1).to(weight.dtype) for k in range(orders)]
    return torch.stack(rows), torch.stack(columns)


@register_quantizer
class AnyOrder(Quantizer):
    """Sums of binary orders; see the module docstring."""

    bit_widths: ClassVar = (1, 2, 3, 4)
    roles: ClassVar = ("weight", "param")
    kind = BinaryOrders
    affine = False

    def __init__(self, bits: int, site: Site = WEIGHT) -> None:
        super().__init__(bits, site)
        shape = site.shape or (1, 1)
        self.stacked = len(shape) == 3  # (K, rows, columns)
        leading, rows = (shape[0], shape[1]) if self.stacked else (1, shape[0])
        columns = torch.Size(shape[2 if self.stacked else 1 :]).numel()
        self.known = site.shape is not None
        self.rows = nn.Parameter(torch.ones(bits, leading, rows))
        self.columns = nn.Parameter(torch.ones(bits, leading, columns))

    def matrices(self, x: Tensor) -> Tensor:
        """View of a weight as (directions or 1, rows, columns); of any other tensor as one row of values."""
        if not self.known:
            return x.reshape(1, 1, -1)
        return x if self.stacked else x.reshape(1, x.shape[0], -1)

    def scales(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns for a tensor, (bits, directions, rows) and (bits, directions, columns)."""
        rows, columns = self.rows.to(x.dtype), self.columns.to(x.dtype)
        return rows, columns if self.known else columns.expand(-1, -1, x.numel())

    @torch.no_grad()
    def set_scales(self, rows: Tensor, columns: Tensor) -> None:
        """Take fitted scales, and mark them initialised."""
        self.rows.copy_(rows)
        self.columns.copy_(columns)
        self.observed.fill_(1)
        self.initialized.fill_(True)
        self._ready = True

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        fitted = [fit(matrix, self.bits) for matrix in self.matrices(x)]
        rows, columns = (torch.stack(parts, 1) for parts in zip(*fitted, strict=True))
        if not self.known:  # nothing is known about columns: they share one scale
            rows, columns = rows * columns.abs().mean(-1, keepdim=True), torch.ones_like(self.columns)
        return {"rows": rows, "columns": columns}

    def encode(self, x: Tensor) -> BinaryOrders:
        self._require_initialized()
        x = self._full(x.detach())
        rows, columns = (scale.detach() for scale in self.scales(x))
        index = torch.stack(
            [nearest_signs(m, rows[:, i], columns[:, i]) for i, m in enumerate(self.matrices(x))]
        ).reshape(x.shape)
        alpha, along = self._tables(rows, columns, x)
        return BinaryOrders((index - 2 ** (self.bits - 1)).to(torch.int32), alpha, along)

    def quantize(self, x: Tensor) -> Tensor:
        full = self._full(x)
        encoded = self.encode(full)
        unsigned = encoded.codes + 2 ** (self.bits - 1)
        rows, columns = self._tables(*self.scales(full), full)
        grid = sum(rows[k] * columns[k] * (((unsigned >> k) & 1) * 2 - 1) for k in range(self.bits))
        return snap(grid + full - full.detach(), encoded.values()).to(x.dtype)

    def _tables(self, rows: Tensor, columns: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scales in shapes that broadcast to ``x``, with the orders in front."""
        if not self.known:
            return rows.reshape(self.bits, *[1] * x.ndim), columns.reshape(self.bits, *x.shape)
        if self.stacked:
            return rows.unsqueeze(-1), columns.unsqueeze(-2)
        return rows.reshape(self.bits, -1, *[1] * (x.ndim - 1)), columns.reshape(self.bits, 1, *x.shape[1:])
