"""Named settings: ``quant: {preset: plus, bits: 4}`` instead of one quantizer for each kind of site.

======  ==============================================================================================================
plus    Q-MambaIR's quantizers on finer grids that cost a product of integers nothing: weights with a step and an offset
        for each output channel (RFA; the thresholds stay the tensor's), inputs of layers with one step and an offset for
        each channel (LSQOffset; what the offsets add is part of the bias), the scan as published (DLS)
======  ==============================================================================================================

A kind of site that the network has not is left out, and what the file says beside ``preset`` and ``bits`` comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "plus": {
        "weight": {"type": "RFA", "granularity": "channel"},
        "act": {"type": "LSQOffset", "offsets": "channel"},
        "scan": {"type": "DLS"},
    }
}
"""Name -> kind of site -> quantizer without its bits."""


def expanded(preset: str, bits: int) -> dict[str, dict[str, Any]]:
    """The ``quant:`` block that a preset stands for."""
    return {kind: {"type": chosen["type"], "bits": bits, **chosen} for kind, chosen in PRESETS[preset].items()}
