"""Named settings: ``quant: {preset: plus, bits: 4}`` instead of one quantizer for each kind of site.

======  ==============================================================================================================
plus    Q-MambaIR's quantizers on finer grids that cost a product of integers nothing: weights with a step and an offset
        for each output channel (RFA; the thresholds stay the tensor's), inputs of layers, those behind a scan as well,
        with one step and an offset for each channel (LSQOffset; what the offsets add is part of the bias). Of the scan's
        operands the input u has such a grid too, and A a step and an offset for each state; the others are as published (DLS)
======  ==============================================================================================================

A kind of site that the network has not is left out, and what the file says beside ``preset`` and ``bits`` comes first: with a
kind of its own, nothing of the preset's is left for that kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Quantizers = Mapping[str, Mapping[str, Any]]

PRESETS: Mapping[str, Quantizers] = {
    "plus": {
        "weight": {"type": "RFA", "granularity": "channel"},
        "act": {"type": "LSQOffset", "offsets": "channel"},
        "scan": {"type": "DLS"},
    }
}
"""Name -> kind of site -> quantizer without its bits."""

PRESET_OVERRIDES: Mapping[str, Mapping[str, Quantizers]] = {
    "plus": {
        "*out_proj": {"act": {"type": "LSQOffset", "offsets": "channel"}},
        "*.u": {"scan": {"type": "LSQOffset", "offsets": "channel"}},
        "*.A": {"scan": {"type": "LSQOffset", "granularity": "channel", "offsets": "channel"}},
    }
}
"""Name -> pattern -> kind of site -> quantizer without its bits, where such sites are."""


def expanded(preset: str, bits: int) -> dict[str, dict[str, Any]]:
    """The ``quant:`` block that a preset stands for, without its overrides."""
    return _with_bits(PRESETS[preset], bits)


def expanded_overrides(preset: str, bits: int, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The overrides that a preset stands for.

    Args:
        preset: name.
        bits: of its quantizers.
        given: kinds of sites that the file itself has quantizers for, which the preset then has none for.
    """
    found = {}
    for pattern, kinds in PRESET_OVERRIDES[preset].items():
        left = {kind: chosen for kind, chosen in kinds.items() if kind not in given}
        if left:
            found[pattern] = _with_bits(left, bits)
    return found


def _with_bits(chosen: Quantizers, bits: int) -> dict[str, dict[str, Any]]:
    return {kind: {"type": settings["type"], "bits": bits, **settings} for kind, settings in chosen.items()}
