"""Gaussian denoising pairs made on the fly."""

from __future__ import annotations

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from .base import RestorationDataset
from .levels import check_levels
from .noise import add_gaussian_noise, eight_bits

__all__ = ["GaussianNoiseDataset"]


@DATASET_REGISTRY.register()
class GaussianNoiseDataset(RestorationDataset):
    """Clean images and the same with white Gaussian noise, which is neither clipped nor rounded unless ``stored`` says so.

    In training every sample gets new noise. In tests every image gets the noise of the published protocol
    (``noise.gaussian_test_noise``), so two runs and any number of workers see the same pairs.

    Args:
        opt (dict): keys of :class:`RestorationDataset` (``scale`` must be 1) and
            sigma (float | list): standard deviation in grey levels of 0..255; a list picks one per training sample.
            stored (float): share of the samples whose noisy image is rounded and clipped to 8 bits, as a picture file
                holds it; 0 or 1 in a test. Default: 0, the published protocol.

    Raises:
        ValueError, FileNotFoundError, ImageFileError: see :class:`RestorationDataset`; ``sigma`` is missing, negative,
            or a list in a test; ``stored`` is no such share.
    """

    keys = frozenset(("sigma", "stored"))

    def _configure(self) -> None:
        self.sigmas = check_levels(self, "sigma", lambda s: s >= 0, "numbers of at least 0")
        self.stored = self.opt.get("stored", 0)
        number = isinstance(self.stored, (int, float)) and not isinstance(self.stored, bool)
        if not number or not 0 <= self.stored <= 1 or not (self.training or self.stored in (0, 1)):
            allowed = "a share from 0 to 1" if self.training else "0 or 1 in a test"
            raise ValueError(f"{self.title}: stored must be {allowed}, got {self.stored!r}")

    def _pair(
        self, gt: np.ndarray, lq: np.ndarray | None, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if rng is None:
            noisy = add_gaussian_noise(gt, self.sigmas[0])
            return gt, eight_bits(noisy) if self.stored else noisy
        (gt,) = self._crop_and_turn(rng, self.gt_size, gt)
        noisy = add_gaussian_noise(gt, float(rng.choice(self.sigmas)), rng)
        # without a share nothing is drawn: samples stay what they were
        return gt, eight_bits(noisy) if self.stored and rng.random() < self.stored else noisy
