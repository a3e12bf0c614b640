"""Quantized layers, and the functions that put them into a network and describe it."""

from __future__ import annotations

from .info import NetworkInfo
from .matmul import MatMul, QuantMatMul
from .placement import placement
from .prepare import prepare
from .quant_layers import QuantConv2d, QuantEmbedding, QuantLinear

__all__ = [
    "MatMul",
    "NetworkInfo",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantLinear",
    "QuantMatMul",
    "placement",
    "prepare",
]
