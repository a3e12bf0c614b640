"""Models of the two MambaIRv2 networks, under the names of the official option files.

Both test as :class:`MambaIRModel` does, tile by tile (``tile: release``); the official MambaIRv2 and MambaIRv2-light
models split images in the same way. With ``tile: false`` an image is restored in one piece. The routing noise of a tile
comes from the network's own generator, seeded anew for every tile, so results repeat (``network_g: eval_seed``).
"""

from __future__ import annotations

from basicsr.utils.registry import MODEL_REGISTRY

from .mambair_model import MambaIRModel


@MODEL_REGISTRY.register()
class MambaIRv2Model(MambaIRModel):
    """Trains and tests MambaIRv2; options as MambaIRModel."""


@MODEL_REGISTRY.register()
class MambaIRv2LightModel(MambaIRModel):
    """Trains and tests MambaIRv2Light; options as MambaIRModel."""
