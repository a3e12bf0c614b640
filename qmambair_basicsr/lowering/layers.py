"""Layers of an integer network.

With integer codes q and p of activation and weight, y = sum (s_a q - o_a)(s_w p - o_w) + bias. The products of the codes
are summed up exactly (``ops/integer``), the offsets are moved out of the product, exactly as well:

* o_w: one more output channel whose weights are all the code 1 gives sum(s_w s_a q) by the same integer kernel; the
  other channels subtract zero_w = o_w / s_w times it.
* o_a: sum(o_a w) is part of the bias where o_a is constant, and is subtracted where it follows the tensor; where zero
  padding surrounds the map the sum runs over fewer pixels at the border and is the convolution of a map of ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.convert import FrozenCodes
from ..layers.matmul import QuantMatMul
from ..layers.quant_layers import QuantConv2d, QuantEmbedding, QuantLinear
from ..layers.sites import transform_of
from ..layers.transforms import Transform
from ..ops import integer
from ..ops.integer import Codes
from ..ops.onnx_nodes import cast
from .grids import Dequantized, DynamicGrid, LoweringError, grid_of
from .weights import IntegerWeight as IntegerWeight
from .weights import integer_weight


def _exact(frozen: FrozenCodes, groups: int) -> Tensor:
    """A weight (G, O, ...) as its codes stand for."""
    return frozen.encoded.values().unflatten(0, (groups, -1))


class IntegerLinear(nn.Module):
    """A linear layer.

    Args:
        frozen: codes (out, in), with one scale for all, for each row, or for each row and group of columns.
        act: grid of the input.
        bias: (out,) or None.
        part: see :class:`IntegerWeight` (``weights.py``).
    """

    def __init__(self, frozen: FrozenCodes, act: nn.Module, bias: Tensor | None, part: int | None = None):
        super().__init__()
        self.act, self.weight = act, integer_weight(frozen, act, 1, part)
        value = _exact(frozen, 1)[0]
        sums = value.sum(1)  # (out,)
        total = torch.zeros_like(sums) if bias is None else bias.detach().clone()
        self.has_bias = bias is not None or _moves(act)
        excess = value @ act.offset if _per_channel(act) else act.offset * sums
        self.register_buffer("bias", total - excess)
        self.register_buffer("sums", sums if isinstance(act, DynamicGrid) else None)

    def forward(self, x: Tensor) -> Tensor:
        return cast(self.multiply(self.act(x)), x.dtype)

    def multiply(self, x: Codes | Tensor) -> Tensor:
        """The layer without the quantizer of its input."""
        y = self.weight.linear(x)
        if self.sums is not None and x.shift is not None:
            y = y - x.shift * self.sums
        return y + self.bias if self.has_bias else y


def _per_channel(act: nn.Module) -> bool:
    """Whether a grid has an offset for each channel of the activation."""
    return isinstance(act.offset, Tensor) and act.offset.numel() > 1


def _moves(act: nn.Module) -> bool:
    """Whether a grid has a constant offset that is not 0."""
    return bool((act.offset != 0).any()) if isinstance(act.offset, Tensor) else bool(act.offset)


class BorderSums(nn.Module):
    """Sums of a kernel over the pixels of a map, (1, C_out, H, W): fewer at the border, where padding is.

    Args:
        sums: kernel summed over its input channels, (C_out, 1, kH, kW).
        geometry: stride, padding and dilation of the convolution.
    """

    def __init__(self, sums: Tensor, geometry: tuple):
        super().__init__()
        self.geometry = geometry
        self.register_buffer("sums", sums.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        # ones from the input, so that no runtime keeps the result, as large as a feature map, as a constant
        first = x[:1, :1]
        return F.conv2d(torch.eq(first, first).to(self.sums.dtype), self.sums, None, *self.geometry)


class IntegerConv2d(nn.Module):
    """A convolution with zero padding."""

    def __init__(self, layer: QuantConv2d, act: nn.Module):
        super().__init__()
        if layer.padding_mode != "zeros":
            raise LoweringError(
                f"{layer.weight_quantizer.site.label}: a quantized convolution with padding_mode "
                f"{layer.padding_mode!r} has no integer form, only 'zeros' has"
            )
        self.geometry = (layer.stride, layer.padding, layer.dilation)
        self.groups = layer.groups
        self.act, self.weight = act, integer_weight(layer.weight_quantizer, act, layer.groups)
        value = _exact(layer.weight_quantizer, layer.groups)
        self.follows = isinstance(act, DynamicGrid)  # the shift is known with the tensor only
        if _per_channel(act):
            value = value * act.offset.view(self.groups, 1, -1, 1, 1)
        sums = value.sum(2).flatten(0, 1).unsqueeze(1)  # (C_out, 1, kH, kW)
        sums = sums if self.follows or _per_channel(act) else sums * act.offset
        bias = sums.new_zeros(layer.out_channels) if layer.bias is None else layer.bias.detach().clone()
        self.border = BorderSums(sums, self.geometry) if self.follows or (_moves(act) and any(layer.padding)) else None
        if self.border is None:
            bias = bias - sums.flatten(1).sum(1)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        q = self.act(x)
        y = self.weight.conv2d(q, self.bias, self.geometry)
        if self.follows and q.shift is not None:
            y = y - q.shift * self.border(x)
        elif self.border is not None and not self.follows:
            y = y - self.border(x)
        return cast(y, x.dtype)


class FloatWeight(nn.Module):
    """A layer whose weight keeps full precision, or has codes that are no integers times a scale, on a grid's values."""

    def __init__(self, layer: QuantLinear | QuantConv2d):
        super().__init__()
        self.layer = _plain(layer)
        if isinstance(layer.weight_quantizer, FrozenCodes):
            self.layer.weight = nn.Parameter(layer.weight_quantizer.encoded.values(), requires_grad=False)
        self.layer.add_module("act_quantizer", Dequantized(grid_of(layer.act_quantizer, products=False)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(self.layer(self.layer.act_quantizer(x)), x.dtype)


def _plain(layer: QuantLinear | QuantConv2d) -> nn.Linear | nn.Conv2d:
    """torch's layer with the parameters of a quantized one."""
    if isinstance(layer, QuantLinear):
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    else:
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation
        plain = nn.Conv2d(*sizes, layer.groups, layer.bias is not None, layer.padding_mode, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


class IntegerEmbedding(nn.Module):
    """Rows of a table of codes, dequantized.

    Args:
        frozen: codes (num_embeddings, embedding_dim).
    """

    def __init__(self, frozen: FrozenCodes):
        super().__init__()
        self.num_embeddings, self.kind = frozen.codes.shape[0], frozen.kind
        self.register_buffer("codes", frozen.codes.clone())
        tables = frozen.encoded.tables()
        for name in frozen.kind.table_names():
            self.register_buffer(name, tables[name].clone() if name in tables else None)

    @property
    def weight(self) -> Tensor:
        """The table, (num_embeddings, embedding_dim)."""
        return self.kind(self.codes, **{name: getattr(self, name) for name in self.kind.table_names()}).values()

    def forward(self, index: Tensor) -> Tensor:
        """Indices (...) -> (..., embedding_dim)."""
        return F.embedding(index, self.weight)


class Product(nn.Module):
    """Product of two activations on their grids, with the offsets o_a, o_b moved out of it.

    (a - o_a)(b - o_b) = a b - o_b (sums of the rows of a) - o_a (sums of the columns of b) + K o_a o_b, K terms each.

    Args:
        left, right: grids of the operands.
    """

    def __init__(self, left: nn.Module, right: nn.Module):
        super().__init__()
        self.left_quantizer, self.right_quantizer = left, right

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., M, K), (..., K, N) -> (..., M, N)."""
        kind = a.dtype
        a, b = self.left_quantizer(a), self.right_quantizer(b)
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return cast(integer.dequantize(a) @ integer.dequantize(b), kind)
        y = integer.matmul(a, b)
        if b.shift is not None:
            y = y - b.shift * integer.total(a, -1)
        if a.shift is not None:
            sums = integer.total(b, -2)
            y = y - a.shift * (sums if b.shift is None else sums - b.shift * b.data.shape[-2])
        return cast(y, kind)


class Transformed(nn.Module):
    """A layer whose input is transformed in floating point in front of its grid, such as rotated."""

    def __init__(self, transform: Transform, layer: nn.Module):
        super().__init__()
        self.transform, self.layer = transform, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.transform.enter(x))


def entering(transform: Transform | None) -> Transform | None:
    """The transform of the input of an integer product, merged as far as it can be.

    Raises:
        LoweringError: it acts behind the quantizer, where there are codes.
    """
    if transform is not None and transform.leaves:
        raise LoweringError(
            f"{transform.layout.name}: {type(transform).__name__} is subtracted behind the quantizer, which products of "
            "codes cannot be; merge it into what computes the input"
        )
    return transform


def lowered_layer(layer: nn.Module) -> nn.Module:
    """The integer form of a quantized layer whose weight is frozen, or of a quantized product.

    Raises:
        LoweringError: it has none.
    """
    transform = entering(transform_of(layer, ""))
    lowered = _lowered(layer)
    return lowered if transform is None else Transformed(transform, lowered)


def _lowered(layer: nn.Module) -> nn.Module:
    if isinstance(layer, QuantMatMul):
        return Product(grid_of(layer.left_quantizer, True), grid_of(layer.right_quantizer, True))
    frozen = layer.weight_quantizer if isinstance(layer.weight_quantizer, FrozenCodes) else None
    if isinstance(layer, QuantEmbedding):
        return nn.Embedding.from_pretrained(layer.weight.detach()) if frozen is None else IntegerEmbedding(frozen)
    if frozen is None or not frozen.grouped_form():  # what is left is the activation
        return FloatWeight(layer)
    act = grid_of(layer.act_quantizer, products=True, groups=True)
    if isinstance(layer, QuantLinear):
        return IntegerLinear(layer.weight_quantizer, act, layer.bias)
    return IntegerConv2d(layer, act)
