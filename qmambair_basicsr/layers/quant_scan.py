"""Quantizers of a selective scan and its projections."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..quantizers.base import Quantizer
from .weight_cache import WeightCache

PROJECTION_SITES = {"x_proj": ("x_proj_weight", "x_proj_input"), "dt_projs": ("dt_projs_weight", "dt_projs_input")}
"""Projection -> names of its weight site and activation site. One quantizer each for all scan directions."""

SCAN_SITES = ("u", "delta", "A", "B", "C", "D", "dt_bias")
"""Inputs of the scan: u is the feature map, delta is taken before bias and softplus, A = -exp(A_logs)."""

PARAMETER_SITES = ("x_proj_weight", "dt_projs_weight", "A", "D", "dt_bias")
"""Sites whose tensor depends on a parameter only, so that its quantized value can be kept in evaluation."""


class QuantSelectiveScan(nn.ModuleDict):
    """Site name -> quantizer, for one scan; ``prepare`` attaches it to a ``ScanParameters`` as ``quantizers``.

    The scan's state and output stay in full precision (placement of Q-MambaIR's release).

    Args:
        quantizers (Mapping[str, Quantizer]): One quantizer for each name of ``PROJECTION_SITES`` and ``SCAN_SITES``.
    """

    def __init__(self, quantizers: Mapping[str, Quantizer]):
        super().__init__(quantizers)
        self.weight_caches = {name: WeightCache() for name in PARAMETER_SITES}

    def forward(self, name: str, tensor: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        """Fake-quantize the tensor of a site.

        Args:
            name (str): Site.
            tensor (Tensor): Value at that site.
            source (Tensor | None): Parameter that the value is computed from, if it is not a parameter itself.
        """
        if name in self.weight_caches:
            return self.weight_caches[name](self[name], tensor, source)
        return self[name](tensor)

    def train(self, mode: bool = True) -> QuantSelectiveScan:
        for cache in self.weight_caches.values():
            cache.clear()
        return super().train(mode)
