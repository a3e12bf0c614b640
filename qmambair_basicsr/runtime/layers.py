"""Layers of a lowered network packed for the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..lowering.grids import DynamicGrid
from ..lowering.layers import FloatWeight, IntegerConv2d, IntegerLinear
from ..lowering.weights import IntegerWeight
from ..ops.glue.native import DeltaWeights
from ..ops.integer.kernels import IntegerLayer, pack
from .grids import NativeGrid, NotFused


class NativeLayer:
    """A packed layer and the grid of its input.

    Attributes:
        layer: the layer.
        grid: of its input.
        inputs, outputs: channels.
    """

    def __init__(self, layer: IntegerLayer, grid: NativeGrid):
        self.layer, self.grid, self.inputs, self.outputs = layer, grid, layer.weight.inputs, layer.weight.out


def native_linear(
    layer: nn.Module,
    index: Tensor | None = None,
    *,
    activation: str = "none",
    residual_scale: Tensor | None = None,
    grid: NativeGrid | None = None,
) -> NativeLayer:
    """A linear layer, or some of its output channels.

    Args:
        layer: ``IntegerLinear``.
        index: output channels, in the order in which they are wanted; None for all.
        activation, residual_scale: see ``IntegerLayer``.
        grid: that of its input, where another layer has it already.

    Raises:
        NotFused: it is no layer of integers.
    """
    _require(layer, IntegerLinear)
    weight = layer.weight
    outputs = weight.codes.shape[0] - weight.shifted
    index = torch.arange(outputs) if index is None else index
    last = torch.tensor([outputs]) if weight.shifted else index[:0]
    rows = torch.cat((index, last))
    grid = grid or NativeGrid(layer.act)
    packed = pack(weight.codes[rows], grid.zero, ones=weight.shifted)
    given = IntegerLayer(
        packed,
        weight.scale[rows] if weight.scale.numel() > 1 else weight.scale,
        bias=layer.bias[index] if layer.has_bias else None,
        sums=None if layer.sums is None else layer.sums[index],
        follows=layer.sums is not None,
        factor=weight.factor[index] if weight.shifted else None,
        activation=activation,
        residual_scale=residual_scale,
    )
    return NativeLayer(given, grid)


def native_conv(layer: nn.Module, *, activation: str = "none", residual_scale: Tensor | None = None) -> NativeLayer:
    """A convolution; see :func:`native_linear`."""
    _require(layer, IntegerConv2d)
    weight, (stride, padding, dilation) = layer.weight, layer.geometry
    if isinstance(padding, str):
        raise NotFused(f"{weight.site}: padding {padding!r}")
    grid = NativeGrid(layer.act)
    given = IntegerLayer(
        pack(weight.codes, grid.zero, groups=layer.groups, ones=weight.shifted),
        weight.scale,
        bias=layer.bias,
        sums=None if layer.border is None else layer.border.sums.squeeze(1),
        follows=layer.follows,
        factor=weight.factor if weight.shifted else None,
        activation=activation,
        residual_scale=residual_scale,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    return NativeLayer(given, grid)


def delta_weights(layers: nn.ModuleList) -> DeltaWeights:
    """The K projections that give the scan's delta."""
    for layer in layers:
        _require(layer, IntegerLinear)
    weights = [layer.weight for layer in layers]
    outputs = weights[0].codes.shape[0] - weights[0].shifted
    if any(weight.shifted != weights[0].shifted for weight in weights):
        weights_shifted = True
    else:
        weights_shifted = weights[0].shifted
    scales, ones, factors = [], [], []
    for weight in weights:
        count = weight.codes.shape[0] - weight.shifted
        scale = weight.scale.flatten().expand(weight.codes.shape[0]) if weight.scale.numel() == 1 else weight.scale
        scales.append(scale[:count])
        ones.append(scale[-1])
        factors.append(weight.factor if weight.shifted else torch.zeros(count))
    follows = isinstance(layers[0].act, DynamicGrid)
    return DeltaWeights(
        codes=torch.stack([weight.codes[:outputs] for weight in weights]).contiguous(),
        scale=torch.stack(scales).contiguous(),
        factor=torch.stack(factors).contiguous() if weights_shifted else None,
        ones=torch.stack(ones).contiguous() if weights_shifted else None,
        sums=torch.stack([layer.sums for layer in layers]).contiguous() if follows else None,
        bias=torch.stack([layer.bias for layer in layers]).contiguous()
        if any(layer.has_bias for layer in layers)
        else None,
    )


def _require(layer: nn.Module, kind: type[nn.Module]) -> None:
    if type(layer) is not kind:
        reason = "keeps a full-precision weight" if isinstance(layer, FloatWeight) else f"is a {type(layer).__name__}"
        raise NotFused(f"a layer {reason}")
    if not isinstance(layer.weight, IntegerWeight):
        raise NotFused("a layer has steps for groups of channels")
