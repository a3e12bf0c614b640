"""What is compared of an artifact: parameters and codes of activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WeightCheck:
    """One quantized parameter.

    Attributes:
        name: the parameter.
        stored: ``codes`` (int8), ``values`` (dequantized) or ``folded`` (not in the file by itself).
        equal: whether codes and scale (or values) are the network's; None where folded.
        count: number of values.
    """

    name: str
    stored: str
    equal: bool | None
    count: int


@dataclass(frozen=True)
class ActivationCheck:
    """One quantized activation on one image.

    Attributes:
        name: its quantizer.
        count: number of codes.
        own_input: codes equal when both quantize the graph's tensor; None for DLS computed in the graph, and for
            what the graph holds as a constant.
        whole_network: codes equal when each computes the whole network.
        not_finite: values that are NaN or infinite where a code is made of them, in the file or in the network. They
            equal nothing.
    """

    name: str
    count: int
    own_input: int | None
    whole_network: int
    not_finite: int = 0


def same_scale(got: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two arrays of equal shape, finite both, differ by at most 1e-6 of the largest wanted value."""
    if got.shape != wanted.shape or not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return False
    return bool(np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max())
