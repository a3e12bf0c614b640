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
from .sampling import ChannelMeans, RunningPercentile, Sample, SampleObserver

__all__ = [
    "ChannelMeans",
    "Gram",
    "GramObserver",
    "Histogram",
    "HistogramObserver",
    "MinMaxObserver",
    "Moments",
    "MomentsObserver",
    "Observer",
    "PercentileObserver",
    "RunningPercentile",
    "Sample",
    "SampleObserver",
    "calibrate",
    "collect",
]
