"""Image pairs from two folders or LMDBs, every bad file named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from basicsr.data.data_util import paths_from_lmdb
from basicsr.utils.registry import DATASET_REGISTRY

from .base import Item, RestorationDataset
from .image_files import ImageFileError, list_images, match_channels

__all__ = ["RestorationPairDataset"]


@DATASET_REGISTRY.register()
class RestorationPairDataset(RestorationDataset):
    """Low-quality and ground-truth images that lie in two folders.

    It reads the same layouts as BasicSR's ``PairedImageDataset`` and gives the same test pairs; besides, it names the
    file when one is damaged, lacks its partner or does not fit it, and can leave such files out.

    Args:
        opt (dict): keys of :class:`RestorationDataset` and
            dataroot_lq (str): folder of the inputs, or an ``.lmdb``.
            filename_tmpl (str): name of the input, without ending, for the ground truth's name ``{}``; for example
                ``{}x2``. Default: ``{}``. LMDB keys are the same in both, as in BasicSR.

    Raises:
        ValueError, FileNotFoundError, ImageFileError: see :class:`RestorationDataset`; a partner is missing, or the
            ground truth does not measure ``scale`` times the input (up to ``scale - 1`` pixels more are cut off).
    """

    keys = frozenset(("dataroot_lq", "filename_tmpl"))
    roots = {"gt": "dataroot_gt", "lq": "dataroot_lq"}  # noqa: RUF012  (read only)

    def _list(self) -> list[Item]:
        gt_paths, root = self._gt_paths(), self.opt["dataroot_lq"]
        template = "{}" if self.is_lmdb else self.opt.get("filename_tmpl", "{}")
        if self.is_lmdb:
            partners = {key: key for key in paths_from_lmdb(root)}
        else:
            partners = {file.stem: str(file) for file in list_images(root)}
        items, wanted = [], set()
        for path in gt_paths:
            stem = path if self.is_lmdb else Path(path).stem
            name = template.format(stem)
            wanted.add(name)
            if name in partners:
                items.append(Item(path, partners[name]))
            else:
                self._leave_out(
                    ImageFileError(path, f"its input {name!r} is not in {root}", "add it or remove this file")
                )
        if not self.opt.get("meta_info_file"):
            for name in sorted(partners.keys() - wanted):
                why = f"no ground truth in {self.opt['dataroot_gt']} has this input"
                self._leave_out(ImageFileError(partners[name], why, "add it or remove this file"))
        return items

    def _leave_out(self, error: ImageFileError) -> None:
        if self.on_error == "stop":
            raise error
        self.left_out.append(error)

    def _load(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        gt, lq = self._read(item.gt, "gt"), self._read(item.lq, "lq")
        if gt.shape[2] != lq.shape[2]:
            raise ImageFileError(
                item.lq,
                f"{lq.shape[2]} channels, but its ground truth {item.gt} has {gt.shape[2]}",
                "convert one of them",
            )
        self._check_size(item, gt)
        height, width = (n * self.scale for n in lq.shape[:2])
        over = gt.shape[0] - height, gt.shape[1] - width
        if not all(0 <= n < self.scale for n in over):
            raise ImageFileError(
                item.lq,
                f"{lq.shape[0]} x {lq.shape[1]} pixels do not fit the {gt.shape[0]} x {gt.shape[1]} of {item.gt} "
                f"at scale {self.scale}",
                "make the pair again (tools.prepare_data)",
            )
        gt = gt[:height, :width]
        return tuple(match_channels(img, self.channels, self.grey) for img in (gt, lq))

    def _pair(
        self, gt: np.ndarray, lq: np.ndarray | None, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if rng is None:
            return gt, lq
        gt, lq = self._crop_and_turn(rng, self.gt_size // self.scale, gt, lq)
        return gt, lq
