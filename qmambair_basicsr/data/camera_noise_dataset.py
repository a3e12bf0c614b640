"""Synthetic real-noise pairs for training where no photographed pairs are at hand."""

from __future__ import annotations

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from .base import RestorationDataset
from .noise import camera_noise

__all__ = ["CameraNoiseDataset"]


@DATASET_REGISTRY.register()
class CameraNoiseDataset(RestorationDataset):
    """Clean photographs and the same with simulated camera noise (``noise.camera_noise``); training only.

    Real denoising is tested on photographed pairs (``RestorationPairDataset``), never on this noise.

    Args:
        opt (dict): keys of :class:`RestorationDataset` (``scale`` and ``channels`` as by default) and
            shot (list): lowest and highest photon noise, drawn log-uniformly. Default: [1e-4, 5e-3].
            read (list): lowest and highest sensor noise, drawn log-uniformly. Default: [1e-3, 1e-2].
            quality (list | None): JPEG qualities to pick from; None stores without loss. Default: None.

    Raises:
        ValueError, FileNotFoundError, ImageFileError: see :class:`RestorationDataset`; used outside training, or a
            range is not two ascending positive numbers.
    """

    keys = frozenset(("shot", "read", "quality"))

    def _configure(self) -> None:
        if not self.training or self.scale != 1 or self.channels != 3:
            raise ValueError(f"{self.title}: makes colour training pairs of scale 1 only")
        self.shot = self._range("shot", (1e-4, 5e-3))
        self.read = self._range("read", (1e-3, 1e-2))
        self.qualities = self.opt.get("quality")

    def _range(self, key: str, default: tuple[float, float]) -> tuple[float, float]:
        low, high = bounds = tuple(self.opt.get(key, default))
        if not 0 < low <= high:
            raise ValueError(f"{self.title}: {key} must be two ascending positive numbers, got {list(bounds)}")
        return bounds

    def _pair(
        self, gt: np.ndarray, lq: np.ndarray | None, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        (gt,) = self._crop_and_turn(rng, self.gt_size, gt)
        shot, read = (float(np.exp(rng.uniform(*np.log(bounds)))) for bounds in (self.shot, self.read))
        quality = None if not self.qualities else int(rng.choice(self.qualities))
        return gt, camera_noise(gt, shot, read, rng, quality)
