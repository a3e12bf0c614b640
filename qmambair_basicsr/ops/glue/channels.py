"""Channel attention on the C++ kernels of ``kernels/cpu``: mean over the map, two layers and a sigmoid in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..native_library import address, threads
from ..prepared import Prepared, rows_of
from .native import fields

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p
MOST_CHANNELS = 4096  # kGlueBuffer in kernels/cpu/glue.h


class AttendWeights(NamedTuple):
    """Two layers with a ReLU between them, as the kernel reads them; see :func:`attend_weights`."""

    enter: Tensor
    enter_bias: Tensor
    leave: Tensor
    leave_bias: Tensor


def attend_weights(layers: Sequence[nn.Module]) -> AttendWeights | None:
    """The layers behind the mean of each channel, or None where they are others than the kernel computes.

    Args:
        layers: 1x1 convolution, ReLU, 1x1 convolution, sigmoid, in float32.
    """
    if [type(layer) for layer in layers] != [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.Sigmoid]:
        return None
    convolutions = layers[0], layers[2]
    for layer in convolutions:
        plain = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1
        if not plain or layer.padding not in ((0, 0), "valid", "same") or layer.weight.dtype != torch.float32:
            return None
        if max(layer.in_channels, layer.out_channels) > MOST_CHANNELS:
            return None
    return AttendWeights(*(t for layer in convolutions for t in _dense(layer)))


def _dense(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weights (outputs, inputs) and bias."""
    weight = layer.weight.detach().flatten(1).contiguous()
    return weight, torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().contiguous()


class _Attend(ctypes.Structure):
    """Mirror of ``struct AttendArgs`` in kernels/cpu/glue.h."""

    _fields_ = fields(
        (_INT, "rows columns hidden threads"),
        (_POINTER, "x"),
        (_INT, "x_stride"),
        (_POINTER, "enter enter_bias leave leave_bias out"),
    )


def attend(x: Tensor, weights: AttendWeights, out: Tensor) -> Prepared:
    """How much each channel counts, from its mean over the map.

    Args:
        x: (M, C) float32.
        weights: of the layers.
        out: where the result goes, (C,).

    Raises:
        ValueError: channels that the weights do not have.
    """
    (count, columns), hidden = x.shape, len(weights.enter)
    if weights.enter.shape[1] != columns or len(weights.leave) != columns or out.shape != (columns,):
        given = weights.enter.shape[1], len(weights.leave), tuple(out.shape)
        raise ValueError(f"attend: {columns} channels, the layers and the output have {given}")
    arguments = _Attend(
        rows=count,
        columns=columns,
        hidden=hidden,
        threads=threads(),
        x=address(x),
        x_stride=rows_of(x, columns),
        out=address(out),
        **{name: address(t) for name, t in weights._asdict().items()},
    )
    return Prepared("qm_glue_attend", arguments, (x, weights, out))
