"""MambaIRv2's routing on the C++ kernels of ``kernels/cpu``: a prompt for every token, and the order that follows."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..native_library import address, function, threads
from ..prepared import Prepared, rows_of
from .native import fields

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p
_LANES = 16  # kRouteLanes in kernels/cpu/glue.h
MOST_PROMPTS, MOST_HIDDEN = 1024, 512


class RouteWeights(NamedTuple):
    """Two linear layers with a GELU between them, as the kernel reads them; see :func:`route_weights`."""

    inputs: int
    hidden: int
    prompts: int
    enter: Tensor
    enter_bias: Tensor
    leave: Tensor
    leave_bias: Tensor


def route_weights(layers: nn.Module) -> RouteWeights | None:
    """The layers that give a token's logits, or None where they are others than the kernel computes.

    Args:
        layers: linear layer, GELU, linear layer, in float32.
    """
    if type(layers) is not nn.Sequential or [type(layer) for layer in layers] != [nn.Linear, nn.GELU, nn.Linear]:
        return None
    enter, gelu, leave = layers
    fits = enter.out_features <= MOST_HIDDEN and leave.out_features <= MOST_PROMPTS and gelu.approximate == "none"
    if not fits or enter.weight.dtype != torch.float32 or leave.weight.dtype != torch.float32:
        return None
    sizes = enter.in_features, enter.out_features, leave.out_features
    return RouteWeights(*sizes, *_padded(enter), *_padded(leave))


def _padded(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weights (inputs, outputs) and bias, outputs filled up with zeros to whole vectors."""
    lanes = -(-layer.out_features // _LANES) * _LANES
    weight, bias = torch.zeros(layer.in_features, lanes), torch.zeros(lanes)
    weight[:, : layer.out_features] = layer.weight.detach().t()
    if layer.bias is not None:
        bias[: layer.out_features] = layer.bias.detach()
    return weight, bias


class _Route(ctypes.Structure):
    """Mirror of ``struct RouteArgs`` in kernels/cpu/glue.h."""

    _fields_ = fields(
        (_INT, "rows prompts threads"),
        (_POINTER, "scores"),
        (_INT, "scores_stride"),
        (_POINTER, "uniform picked x"),
        (_INT, "x_stride inputs hidden"),
        (_POINTER, "enter enter_bias leave leave_bias"),
    )


def route(scores: Tensor, uniform: Tensor, picked: Tensor, weights: RouteWeights | None = None) -> Prepared:
    """The prompt of every token: the first largest of ``scores - log(-log(uniform))``.

    Args:
        scores: logits (M, T) float32; with weights the tokens (M, C) that these give the logits of.
        uniform: (M, T) float32 in [0, 1), contiguous.
        picked: where the picks go, (M,) int64.
        weights: of the layers in front of the logits.
    """
    count, prompts = uniform.shape
    columns = prompts if weights is None else weights.inputs
    if scores.shape != (count, columns) or not uniform.is_contiguous() or picked.shape != (count,):
        raise ValueError(
            f"route: scores {tuple(scores.shape)}, noise {tuple(uniform.shape)}, picks {tuple(picked.shape)}"
        )
    if weights is not None and weights.prompts != prompts:
        raise ValueError(f"route: noise for {prompts} prompts, layers for {weights.prompts}")
    given = {"uniform": address(uniform), "picked": address(picked)}
    if weights is None:
        given |= {"scores": address(scores), "scores_stride": rows_of(scores, columns)}
    else:
        given |= {"x": address(scores), "x_stride": rows_of(scores, columns)}
        given |= {"inputs": weights.inputs, "hidden": weights.hidden}
        given |= {name: address(getattr(weights, name)) for name in ("enter", "enter_bias", "leave", "leave_bias")}
    arguments = _Route(rows=count, prompts=prompts, threads=threads(), **given)
    return Prepared("qm_glue_route", arguments, (scores, uniform, picked, weights))


def order(picked: Tensor, prompts: int, out: Tensor, inverse: Tensor) -> None:
    """Order of the tokens by their prompts, raster order within one (``ops/semantic_order``), and its inverse.

    Args:
        picked: (M,) int64 in range(prompts).
        prompts: their number.
        out: where the order goes, (M,) int32.
        inverse: (M,) int64.
    """
    call = function("qm_glue_order", "piipp")
    call(address(picked), picked.numel(), prompts, address(out), address(inverse))
