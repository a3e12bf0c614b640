"""Quantized layers, and the functions that put them into a network, calibrate it and describe it."""

from __future__ import annotations

from .calibrate import calibrate, uncalibrated
from .placement import placement
from .prepare import prepare
from .quant_layers import QuantConv2d, QuantEmbedding, QuantLinear
from .quant_matmul import QuantMatMul
from .quant_scan import QuantSelectiveScan

__all__ = [
    "QuantConv2d",
    "QuantEmbedding",
    "QuantLinear",
    "QuantMatMul",
    "QuantSelectiveScan",
    "calibrate",
    "placement",
    "prepare",
    "uncalibrated",
]
