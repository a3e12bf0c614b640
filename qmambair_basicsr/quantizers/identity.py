"""Identity: no quantization, what 32 bits mean.

In the authors' code 32 bits would build 2**32 thresholds; here they leave the tensor alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer
from .registry import register_quantizer
from .site import ACTIVATION, Site


@register_quantizer
class Identity(Quantizer):
    """Returns its input. Always initialised; has no integer form."""

    bit_widths = (32,)

    def __init__(
        self,
        bits: int = 32,
        site: Site = ACTIVATION,
    ) -> None:
        super().__init__(bits, site)
        # nothing to save: an unquantized site adds no key to the state_dict
        self.register_buffer("initialized", torch.tensor(True), persistent=False)
        self.register_buffer("observed", torch.tensor(0, dtype=torch.int64), persistent=False)

    def estimate(self, x: Tensor) -> dict[str, Tensor]:
        return {}

    def forward(self, x: Tensor) -> Tensor:
        return x

    def quantize(self, x: Tensor) -> Tensor:
        return x

    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Not defined.

        Raises:
            TypeError: always; a full-precision tensor has no codes.
        """
        raise TypeError(f"{self._label()} keeps full precision: there are no integer codes")

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The identity: ``(x, 1, 0)``."""
        return x, x.new_ones(()), x.new_zeros(())

    def health(self, x: Tensor | None = None) -> dict[str, float]:
        return {}
