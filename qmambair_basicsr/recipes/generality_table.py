"""The networks of the comparison at a small width, and what they are quantized with (``tools.generality``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from .option_networks import WITHOUT_SCAN

METHODS = {"LSQ": "lsq", "QuantSR": "quantsr", "Q-MambaIR": ""}
"""Name in tables -> method of the option table."""

EVERYWHERE = "Q-MambaIR, DLS on inputs"
"""Of networks without a scan: the placement of the released code leaves them no DLS, that of the paper does."""

SR_SETS, DN_SETS, REAL_SETS = ("Set5", "Set14"), ("McMaster",), ("CC15",)


@dataclass(frozen=True)
class Compared:
    """A network of the study.

    Attributes:
        family, task: row of the option table.
        network: constructor keys that differ from the published network.
        sets: test sets.
    """

    family: str
    task: str
    network: dict = field(hash=False)
    sets: tuple[str, ...] = SR_SETS

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that make sense for it."""
        return (*METHODS, EVERYWHERE) if self.family in WITHOUT_SCAN else tuple(METHODS)


_WIDE = {"embed_dim": 32, "depths": [2, 2]}
_LEVELS = {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}
_HEADS = {"scan_type": "diagonal", "scan_count": 8, "scan_merge_method": "concate", "d_state": 4, "expand": 1}

NETWORKS = {
    row.family: row
    for row in (
        Compared("MambaIR", "lightSRx2", {**_WIDE, "d_state": 4}),
        Compared(
            "MambaIRv2Light",
            "lightSRx2",
            {**_WIDE, "num_heads": [4, 4], "d_state": 4, "inner_rank": 8, "num_tokens": 16},
        ),
        Compared("MambaIRUNet", "RealDN", {"dim": 30, **_LEVELS, "d_state": 4}, REAL_SETS),
        Compared("MaIR", "lightSRx2", {**_WIDE, "d_state": 4}),
        Compared("EAMambaSR", "lightSRx2", {"dim": 32, "num_blocks": [2, 2], "mamba_cfg": _HEADS}),
        Compared("VmambaIR", "ColorDN25", {"dim": 16, **_LEVELS}, DN_SETS),
        Compared("SwinIR", "lightSRx2", {**_WIDE, "num_heads": [4, 4]}),
        Compared("EDSR", "lightSRx2", {"num_feat": 32, "num_block": 8}),
    )
}

ALL_SETS = tuple(dict.fromkeys(name for row in NETWORKS.values() for name in row.sets))
