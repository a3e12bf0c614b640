"""Every task with a network and a training small enough for a CPU core (``tools.reduced_tasks``)."""

from __future__ import annotations

from dataclasses import dataclass

_SMALL = {"embed_dim": 32, "depths": [1], "d_state": 4}
_SMALL_UNET = {"dim": 30, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "d_state": 2}


@dataclass(frozen=True)
class Reduced:
    """A task with its small network and short recipe.

    Attributes:
        family, task: row of the option table.
        network: constructor keys that differ from the published network.
        sets: test sets at hand.
        lr: learning rate of full-precision training (cosine, Adam).
    """

    family: str
    task: str
    network: dict
    sets: tuple[str, ...]
    lr: float


REDUCED = {
    row.task: row
    for row in (
        Reduced("MambaIR", "SRx2", _SMALL, ("Set5", "Set14", "B100"), 2e-4),
        Reduced("MambaIR", "lightSRx2", _SMALL, ("Set5", "Set14", "B100"), 2e-4),
        Reduced("MambaIR", "ColorDN25", _SMALL, ("McMaster", "CBSD68"), 2e-3),
        Reduced("MambaIR", "CARq10", _SMALL, ("classic5", "LIVE1"), 2e-3),
        Reduced("MambaIRUNet", "RealDN", _SMALL_UNET, ("CC15",), 1e-3),
    )
}


ALL_SETS = tuple(dict.fromkeys(name for row in REDUCED.values() for name in row.sets))
