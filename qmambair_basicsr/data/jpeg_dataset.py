"""JPEG artifact pairs made on the fly, with the same bytes on every machine."""

from __future__ import annotations

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from .base import RestorationDataset
from .jpeg_codec import SUBSAMPLING, jpeg_roundtrip
from .levels import check_levels

__all__ = ["JPEGDataset"]


@DATASET_REGISTRY.register()
class JPEGDataset(RestorationDataset):
    """Images and what ``jpeg_codec`` (baseline, IJG quality scale, 4:2:0 by default) leaves of them.

    Grey pairs (``channels: 1``, the published protocol) compress the Y channel of MATLAB's ``rgb2ycbcr``; with it the
    inputs have the PSNR the literature prints (Classic5 27.82/30.12/31.48/32.43 dB, LIVE1 27.77/30.07/31.41/32.35 dB
    at quality 10/20/30/40). In training a patch is compressed with a random place of the block grid.

    Args:
        opt (dict): keys of :class:`RestorationDataset` (``scale`` must be 1) and
            quality (int | list): 1 to 100; a list picks one per training sample.
            subsampling (str): chroma of colour pairs, ``4:2:0`` (default) or ``4:4:4``.

    Raises:
        ValueError, FileNotFoundError, ImageFileError: see :class:`RestorationDataset`; ``quality`` is missing, out of
            range, or a list in a test.
    """

    keys = frozenset(("quality", "subsampling"))

    def _configure(self) -> None:
        self.qualities = check_levels(
            self, "quality", lambda q: q == int(q) and 1 <= q <= 100, "whole numbers from 1 to 100"
        )
        self.subsampling = self._choice("subsampling", SUBSAMPLING[0], SUBSAMPLING)

    def _pair(
        self, gt: np.ndarray, lq: np.ndarray | None, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if rng is None:
            return gt, jpeg_roundtrip(gt, self.qualities[0], self.subsampling)
        # room to move the grid of jointly coded pixels, as far as the image allows
        grid = 16 if self.channels == 3 and self.subsampling == "4:2:0" else 8
        margin = min(grid - 1, *(n - self.gt_size for n in gt.shape[:2]))
        (gt,) = self._crop_and_turn(rng, self.gt_size + margin, gt)
        lq = jpeg_roundtrip(np.ascontiguousarray(gt), int(rng.choice(self.qualities)), self.subsampling)
        top, left = (int(n) for n in rng.integers(margin + 1, size=2))
        window = np.s_[top : top + self.gt_size, left : left + self.gt_size]
        return gt[window], lq[window]
