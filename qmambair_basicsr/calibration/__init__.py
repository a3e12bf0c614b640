"""Calibration: statistics of what passes through a network, and starting values of its quantizers from them."""

from __future__ import annotations

from .calibrate import calibrate
from .collect import collect
from .observers import (
    Gram,
    GramObserver,
    Histogram,
    HistogramObserver,
    MinMaxObserver,
    Moments,
    MomentsObserver,
    Observer,
    PercentileObserver,
)

__all__ = [
    "Gram",
    "GramObserver",
    "Histogram",
    "HistogramObserver",
    "MinMaxObserver",
    "Moments",
    "MomentsObserver",
    "Observer",
    "PercentileObserver",
    "calibrate",
    "collect",
]
