"""``quant_train: progressive``: one training through several widths, widest first; the last is the network's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..quantizers.site import KINDS
from .quant_options import Stage


def width_at(stages: Sequence[Stage], iteration: int) -> int | None:
    """Bits of the stage that an iteration (from 1 on) belongs to; None behind the last stage."""
    for stage in stages:
        if iteration <= stage.iterations:
            return stage.bits
        iteration -= stage.iterations
    return None


def check(stages: Sequence[Stage], total: int) -> None:
    """See that iterations are left for the network's own width.

    Raises:
        ValueError: there are none.
    """
    used = sum(stage.iterations for stage in stages)
    if used >= total:
        raise ValueError(
            f"quant_train: progressive: the stages take {used} iterations of train: total_iter {total}; leave some for the "
            "widths of network_g: quant"
        )


def widened(network: Mapping[str, Any], bits: int | None) -> dict[str, Any]:
    """A ``network_g`` section whose quantizers have at least so many bits; as it is for None.

    Sites in full precision stay so, and sites with more bits keep them.
    """
    network = copy.deepcopy(dict(network))
    if bits is None:
        return network
    quant = network["quant"] = dict(network["quant"])
    if "preset" in quant:
        quant["bits"] = max(quant["bits"], bits)
    for block in (quant, *quant.get("overrides", {}).values()):
        for kind in KINDS:
            if "bits" in block.get(kind, {}):
                block[kind]["bits"] = max(block[kind]["bits"], bits)
    return network
