"""GPTQ: rounding a weight column by column, each column's error made up for by those that follow.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023; checked
against IST-DASLab/gptq. With H = X^T X (any factor), damped by ``damp`` times its mean diagonal, and U the upper Cholesky
factor of H^-1::

    q_j = grid(w_j)      w_k <- w_k - (w_j - q_j) U[j, k] / U[j, j]      for k > j

A building block: :func:`gptq` rounds one matrix; :func:`gptq_network` puts all weights of a network on the grids that their
quantizers have already, where a weight's own quantizer leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..calibration import Gram, GramObserver, collect
from ..layers.sites import PlacedSite, network_sites
from ..layers.transforms import places

Grid = Callable[[Tensor, int], Tensor]
"""(rows,) values of a column and its index -> the same on the grid."""


_BLOCK = 128  # columns that the release updates together


def gptq(
    weight: Tensor, hessian: Tensor, grid: Grid, damp: float = 0.01, act_order: bool = False, groups: int = 0
) -> Tensor:
    """Round a matrix with GPTQ.

    Args:
        weight: (rows, columns).
        hessian: X^T X of the inputs, (columns, columns), up to a factor; a column that is never used becomes 0.
        grid: what rounds a column.
        damp: added to the diagonal, in units of its mean.
        act_order: columns of large diagonal first.
        groups: columns that share a grid; before each group ``grid.refit(columns)`` is called with what they were at the
            beginning of their 128 columns, as in the release. 0: no groups.

    Returns:
        (rows, columns), on the grid.
    """
    rest, hessian = weight.double().clone(), hessian.double().clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    rest[:, dead] = 0
    order = (
        hessian.diagonal().argsort(descending=True) if act_order else torch.arange(len(hessian), device=hessian.device)
    )
    rest, hessian = rest[:, order], hessian[order][:, order]
    hessian.diagonal().add_(damp * hessian.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    out = torch.empty_like(rest)
    for j in range(rest.shape[1]):
        if j % _BLOCK == 0:
            seen = rest.to(weight.dtype)
        if groups and j % groups == 0:
            grid.refit(seen[:, j : j + groups])
        column = rest[:, j]
        out[:, j] = grid(column.to(weight.dtype), int(order[j])).double()
        error = (column - out[:, j]) / upper[j, j]
        rest[:, j + 1 :] -= torch.outer(error, upper[j, j + 1 :])
    restored = torch.empty_like(out)
    restored[:, order] = out
    return restored.to(weight.dtype)


class RowGrid:
    """The grid of IST-DASLab/gptq: for each row ``scale (clamp(round(w / scale) + zero, 0, 2^n - 1) - zero)``.

    Args:
        bits: n.
        symmetric: zero in the middle, the range as wide as the larger side.
    """

    def __init__(self, bits: int, symmetric: bool) -> None:
        self.highest, self.symmetric = 2**bits - 1, symmetric
        self.scale = self.zero = torch.zeros(())

    def refit(self, weight: Tensor) -> RowGrid:
        """Take the range of the rows of a matrix."""
        low, high = weight.amin(1).clamp_max(0), weight.amax(1).clamp_min(0)
        if self.symmetric:
            high = torch.maximum(low.abs(), high)
            low = torch.where(low < 0, -high, low)
        empty = (low == 0) & (high == 0)
        low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
        self.scale = (high - low) / self.highest
        middle = torch.full_like(self.scale, (self.highest + 1) / 2)
        self.zero = middle if self.symmetric else torch.round(-low / self.scale)
        return self

    def __call__(self, column: Tensor, index: int = 0) -> Tensor:
        codes = (torch.round(column / self.scale) + self.zero).clamp(0, self.highest)
        return self.scale * (codes - self.zero)


class PatchGram(GramObserver):
    """X^T X of the patches that a convolution multiplies, one for each of its groups.

    Args:
        conv: the convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def take(self, x: Tensor) -> None:
        conv = self.conv
        patches = F.unfold(x.double(), conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # (B, C kk, L)
        patches = patches.unflatten(1, (conv.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)  # (G, B L, C/G kk)
        self._add(patches.shape[1], patches.mT @ patches, patches.sum(1))


class StackedGram(GramObserver):
    """X^T X of an input (..., K, C), one for each of K directions."""

    def take(self, x: Tensor) -> None:
        vectors = x.double().flatten(0, -3).transpose(0, 1)  # (K, M, C)
        self._add(vectors.shape[1], vectors.mT @ vectors, vectors.sum(1))


def gram_observer(owner: nn.Module, stacked: bool, dim: int) -> GramObserver:
    """The observer of X^T X that fits a product."""
    if isinstance(owner, nn.Conv2d):
        return PatchGram(owner)
    return StackedGram() if stacked else GramObserver(dim)


def input_grams(
    net: nn.Module, batches: Sequence[Tensor], wanted: Sequence[str], at_once: int = 24
) -> Iterator[tuple[str, Gram]]:
    """Name and X^T X of the inputs of some products.

    Args:
        net: network; observed in full precision.
        batches: images.
        wanted: names of places.
        at_once: products in one pass over the images; bounds the memory.
    """
    known = places(net)
    for start in range(0, len(wanted), at_once):
        some = set(wanted[start : start + at_once])

        def make(placed: PlacedSite, some: set[str] = some) -> GramObserver | None:
            if placed.site.name not in some or placed.site.operand != "act":
                return None
            place = known[placed.site.name]
            return gram_observer(place.owner, place.layout.stacked, place.layout.dim)

        for label, gram in collect(net, batches, {"*": make}).items():
            yield label.removesuffix(".act"), gram


@torch.no_grad()
def gptq_network(net: nn.Module, batches: Sequence[Tensor], damp: float = 0.01, act_order: bool = False) -> None:
    """Round the weights of all products of a network with GPTQ onto the grids of their quantizers, in place.

    Args:
        net: its weights' quantizers are initialised.
        batches: calibration images.
        damp, act_order: see :func:`gptq`.
    """
    known = places(net)
    weights = {
        placed.site.name: placed
        for placed in network_sites(net)
        if placed.site.operand == "weight" and placed.quantizer.bits != 32 and placed.site.name in known
    }
    for name, gram in input_grams(net, batches, list(weights)):
        each = gram.gram

        def rounded(part: tuple[int, Tensor], grid: Grid, each: Tensor = each) -> Tensor:
            return gptq(part[1], each if each.ndim == 2 else each[part[0]], grid, damp, act_order)

        round_weight(weights[name], known[name].layout.groups, rounded)


def round_weight(placed: PlacedSite, groups: int, rounded: Callable[[tuple[int, Tensor], Grid], Tensor]) -> None:
    """Replace a weight by one on the grid of its quantizer, matrix by matrix.

    Args:
        placed: the weight.
        groups: of a convolution.
        rounded: ((index, matrix (rows, columns)), grid) -> matrix on the grid; called for each direction of a stack
            (K, rows, columns), for each group of a convolution.
    """
    tensor = placed.tensor()
    done = [rounded((index, matrix), grid) for index, matrix, grid in matrices(placed, tensor, groups)]
    placed.set_tensor(torch.stack(done).reshape(tensor.shape))


def matrices(placed: PlacedSite, tensor: Tensor, groups: int) -> Iterator[tuple[int, Tensor, Grid]]:
    """Index, matrix and grid of every matrix of a weight; see :func:`round_weight`."""
    quantizer = placed.quantizer
    stacked = tensor.ndim == 3
    parts = tensor if stacked else tensor.flatten(1).unflatten(0, (groups, -1))  # (G, rows, columns)
    step, offset = (None if t is None else t.detach() for t in quantizer.step_and_offset(tensor))
    offset = torch.zeros_like(step) if offset is None else offset
    for index, matrix in enumerate(parts):
        rows = len(matrix)
        own = slice(None) if stacked or step.numel() == 1 else slice(index * rows, (index + 1) * rows)
        s, o = step[own].to(tensor.dtype), offset[own].to(tensor.dtype)

        def grid(column: Tensor, _: int = 0, s: Tensor = s, o: Tensor = o) -> Tensor:
            codes = torch.round((column + o) / s).clamp(quantizer.qmin, quantizer.qmax)
            return (codes - o / s) * s

        yield index, matrix, grid
