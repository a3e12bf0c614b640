"""The networks of the comparison at a small width, and what they are quantized with (``tools.generality``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from .option_networks import WITHOUT_SCAN

METHODS = {"LSQ": "lsq", "QuantSR": "quantsr", "Q-MambaIR": ""}
"""Name in tables -> method of the option table."""

EVERYWHERE = "Q-MambaIR, DLS on inputs"
"""Of networks without a scan: the placement of the released code leaves them no DLS, that of the paper does."""

ALL_SETS = ("Set5", "Set14")

DENOISING = "ColorDN25"
"""Task of the networks that do not enlarge by 2."""


@dataclass(frozen=True)
class Compared:
    """A network of the study.

    Attributes:
        family, published: row of the option table that its constructor keys are those of.
        network: constructor keys that differ from the published network.
        task: whose data and protocol it is trained and tested with.
        cost: seconds of a training iteration in full precision on one core, to plan with.
    """

    family: str
    published: str
    network: dict = field(hash=False)
    task: str
    cost: float

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that make sense for it."""
        return (*METHODS, EVERYWHERE) if self.family in WITHOUT_SCAN else tuple(METHODS)


_WIDE = {"embed_dim": 32, "depths": [2, 2]}
_LEVELS = {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}
_HEADS = {"scan_type": "diagonal", "scan_count": 8, "scan_merge_method": "concate", "d_state": 4, "expand": 1}
_V2 = {**_WIDE, "num_heads": [4, 4], "d_state": 4, "inner_rank": 8, "num_tokens": 16}
_ENLARGING = "lightSRx2"

NETWORKS = {
    row.family: row
    for row in (
        Compared("MambaIR", _ENLARGING, {**_WIDE, "d_state": 4}, _ENLARGING, 0.055),
        Compared("MambaIRv2Light", _ENLARGING, _V2, _ENLARGING, 0.124),
        Compared("MambaIRUNet", "RealDN", {"dim": 30, **_LEVELS, "d_state": 4}, DENOISING, 0.109),
        Compared("MaIR", _ENLARGING, {**_WIDE, "d_state": 4}, _ENLARGING, 0.07),
        Compared("EAMambaSR", _ENLARGING, {"dim": 32, "num_blocks": [2, 2], "mamba_cfg": _HEADS}, _ENLARGING, 0.048),
        Compared("VmambaIR", DENOISING, {"dim": 16, **_LEVELS}, DENOISING, 0.084),
        Compared("SwinIR", _ENLARGING, {**_WIDE, "num_heads": [4, 4]}, _ENLARGING, 0.045),
        Compared("EDSR", _ENLARGING, {"num_feat": 32, "num_block": 8}, _ENLARGING, 0.027),
    )
}
