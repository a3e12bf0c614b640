"""Gaussian denoising pairs made on the fly."""

from __future__ import annotations

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from .base import RestorationDataset
from .levels import check_levels
from .noise import add_gaussian_noise

__all__ = ["GaussianNoiseDataset"]


@DATASET_REGISTRY.register()
class GaussianNoiseDataset(RestorationDataset):
    """Clean images and the same with white Gaussian noise; the noise is neither clipped nor rounded.

    In training every sample gets new noise. In tests every image gets the noise of the published protocol
    (``noise.gaussian_test_noise``), so two runs and any number of workers see the same pairs.

    Args:
        opt (dict): keys of :class:`RestorationDataset` (``scale`` must be 1) and
            sigma (float | list): standard deviation in grey levels of 0..255; a list picks one per training sample.

    Raises:
        ValueError, FileNotFoundError, ImageFileError: see :class:`RestorationDataset`; ``sigma`` is missing, negative,
            or a list in a test.
    """

    keys = frozenset(("sigma",))

    def _configure(self) -> None:
        self.sigmas = check_levels(self, "sigma", lambda s: s >= 0, "numbers of at least 0")

    def _pair(
        self, gt: np.ndarray, lq: np.ndarray | None, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if rng is None:
            return gt, add_gaussian_noise(gt, self.sigmas[0])
        (gt,) = self._crop_and_turn(rng, self.gt_size, gt)
        return gt, add_gaussian_noise(gt, float(rng.choice(self.sigmas)), rng)
