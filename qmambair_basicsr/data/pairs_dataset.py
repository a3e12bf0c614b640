"""Image pairs from two folders or LMDBs, every bad file named."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from ..strict import did_you_mean
from .base import Item, RestorationDataset
from .image_files import IMAGE_SUFFIXES, ImageFileError, match_channels

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
        ValueError, FileNotFoundError, ImageFileError: see :class:`RestorationDataset`; ``filename_tmpl`` is no template of
            one name; a partner is missing or two files could be it, or the ground truth does not measure ``scale``
            times the input (up to ``scale - 1`` pixels more are cut off).
    """

    keys = frozenset(("dataroot_lq", "filename_tmpl"))
    roots = {"gt": "dataroot_gt", "lq": "dataroot_lq"}  # noqa: RUF012  (read only)

    def _configure(self) -> None:
        self.template = self.opt.get("filename_tmpl", "{}")
        try:
            fields = [parts[1:] for parts in string.Formatter().parse(self.template) if parts[1] is not None]
            usable = fields in ([("", "", None)], [("0", "", None)])  # no attribute, width or conversion
        except (TypeError, ValueError):
            usable = False
        if not usable or self.template.lower().endswith(IMAGE_SUFFIXES):
            raise ValueError(
                f"{self.title}: filename_tmpl must hold {{}} once, where the ground truth's name goes, and no ending of a "
                f"file, such as '{{}}x{self.scale}'; got {self.template!r}"
            )

    def _list(self) -> list[Item]:
        truths, inputs, root = self.sources["gt"], self.sources["lq"], self.opt["dataroot_lq"]
        partners: dict[str, list[str]] = {}
        for image in inputs.images():
            partners.setdefault(inputs.stem(image), []).append(image)
        items, wanted = [], set()
        owners: dict[str, list[str]] = {}
        for image in self._gt_images():
            name = truths.stem(image) if self.is_lmdb else self.template.format(truths.stem(image))
            wanted.add(name)
            found = partners.get(name, [])
            if len(found) > 1:  # they differ in their ending; BasicSR takes the one with the ground truth's
                found = [file for file in found if Path(file).suffix == Path(image).suffix] or found
            if len(found) == 1:
                items.append(Item(image, found[0]))
                owners.setdefault(found[0], []).append(image)
            elif found:
                why = f"{' and '.join(map(inputs.label, found))} could both be its input"
                self._leave_out(ImageFileError(truths.label(image), why, "rename or remove all but one"))
            else:
                near = did_you_mean(name, partners) if self.on_error == "stop" else ""
                why = f"its input {name!r} is not in {root}{near}"
                self._leave_out(ImageFileError(truths.label(image), why, "add it or remove this file"))
        shared = {lq: images for lq, images in owners.items() if len(set(images)) > 1}
        for lq, images in shared.items():
            why = f"the only input of {' and of '.join(map(truths.label, images))}"
            self._leave_out(ImageFileError(inputs.label(lq), why, "rename the images, or add the missing input"))
        items = [item for item in items if item.lq not in shared]
        if not self.opt.get("meta_info_file"):
            for name in sorted(partners.keys() - wanted):
                why = f"no ground truth in {self.opt['dataroot_gt']} has this input"
                self._leave_out(ImageFileError(inputs.label(partners[name][0]), why, "add it or remove this file"))
        return items

    def _load(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        gt, lq = self._read(item.gt, "gt"), self._read(item.lq, "lq")
        truth, source = (self.sources[kind].label(name) for kind, name in (("gt", item.gt), ("lq", item.lq)))
        if gt.shape[2] != lq.shape[2]:
            raise ImageFileError(
                source,
                f"{lq.shape[2]} channels, but its ground truth {truth} has {gt.shape[2]}",
                "convert one of them",
            )
        self._check_size(item, gt)
        height, width = (n * self.scale for n in lq.shape[:2])
        over = gt.shape[0] - height, gt.shape[1] - width
        if not all(0 <= n < self.scale for n in over):
            raise ImageFileError(
                source,
                f"{lq.shape[0]} x {lq.shape[1]} pixels do not fit the {gt.shape[0]} x {gt.shape[1]} of {truth} "
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
