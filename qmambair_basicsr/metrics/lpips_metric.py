"""LPIPS and ST-LPIPS as BasicSR metrics: ``lpips: {type: calculate_lpips, crop_border: 2, net: alex}``."""

from __future__ import annotations

import numpy as np
from basicsr.utils.registry import METRIC_REGISTRY

from .perceptual import distance, lpips_network, st_lpips_network

__all__ = ["calculate_lpips", "calculate_st_lpips"]


@METRIC_REGISTRY.register()
def calculate_lpips(
    img: np.ndarray, img2: np.ndarray, crop_border: int = 0, net: str = "alex", device: str = "cpu"
) -> float:
    """Learned perceptual image patch similarity; lower is better.

    Args:
        img, img2: uint8 (H, W, 3) BGR or grey.
        crop_border: pixels left out at every edge.
        net: trunk, ``alex`` (the usual one) or ``vgg``.
        device: where the network runs.

    Raises:
        ValueError: shapes differ, or an unknown trunk.
        MetricError: the package or the trunk's ImageNet weights are missing; the message says where to put them.
    """
    return distance(lpips_network(net, device), img, img2, crop_border)


@METRIC_REGISTRY.register()
def calculate_st_lpips(
    img: np.ndarray, img2: np.ndarray, crop_border: int = 0, net: str = "alex", device: str = "cpu"
) -> float:
    """Shift-tolerant LPIPS; lower is better. Arguments and errors as :func:`calculate_lpips`; needs no download."""
    return distance(st_lpips_network(net, device), img, img2, crop_border)
