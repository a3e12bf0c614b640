"""Base of the datasets: strict options, files checked by name, one random state per sample.

A dataset lists its images when it is built, reads one when asked, and turns it into a dict
``lq`` (C, h, w), ``gt`` (C, H, W): float32 RGB or grey in [0, 1]; ``lq_path``, ``gt_path``.
Subclasses say which files belong together (:meth:`RestorationDataset._list`) and how an input is degraded
(:meth:`RestorationDataset._pair`).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch.utils.data import Dataset

from ..strict import check_keys, did_you_mean
from .image_files import GREY_MODES, ImageFileError, decode_image, match_channels
from .image_memory import ImageMemory
from .image_sources import BACKENDS, open_source
from .name_lists import names_in

__all__ = ["Item", "RestorationDataset", "image_tensor"]

# keys that BasicSR's loop, loader and sampler read or set in every dataset's options
_LOOP_KEYS = frozenset(
    (
        "name",
        "type",
        "phase",
        "scale",
        "io_backend",
        "use_shuffle",
        "num_worker_per_gpu",
        "batch_size_per_gpu",
        "dataset_enlarge_ratio",
        "prefetch_mode",
        "num_prefetch_queue",
        "pin_memory",
        "persistent_workers",
    )
)
_OWN_KEYS = frozenset(
    (
        "dataroot_gt",
        "meta_info_file",
        "gt_size",
        "use_hflip",
        "use_rot",
        "channels",
        "grey",
        "check_files",
        "on_error",
        "min_size",
        "middle",
    )
)
_SHOWN = 20  # bad files listed in one message


@dataclass(frozen=True)
class Item:
    """One sample's files: paths, or keys of an LMDB. ``lq`` is None where the input is made from the ground truth."""

    gt: str
    lq: str | None = None


def image_tensor(img: np.ndarray) -> torch.Tensor:
    """(H, W, C) BGR or grey, uint8 or float in [0, 1] -> (C, H, W) float32 tensor, RGB or grey, in [0, 1]."""
    if img.dtype == np.uint8:
        img = img.astype(np.float32) / 255.0
    # a copy: torch takes no negative strides, which a reversed axis of length 1 keeps
    return torch.from_numpy(np.array(img[..., ::-1].transpose(2, 0, 1), dtype=np.float32, order="C", copy=True))


class RestorationDataset(Dataset):
    """Base of the datasets; option keys that all of them take.

    Args:
        opt (dict): besides the keys of BasicSR's loop (``name``, ``phase``, ``io_backend`` ...):
            dataroot_gt (str): folder of ground-truth images, or an ``.lmdb``.
            io_backend (dict): ``{type: disk}`` (default) or ``{type: lmdb}``.
            meta_info_file (str | None): text file whose lines begin with a file name of ``dataroot_gt``; only these
                images are used. See ``name_lists``. Default: all of the folder.
            scale (int): size of the ground truth over size of the input. Default: 1.
            channels (int): 3 (BGR files become RGB, grey is repeated) or 1. Default: 3.
            grey (str): how colour becomes one channel, ``y`` (16..235) or ``luma``; see ``image_files.to_grey``.
            gt_size (int): side of the random ground-truth patch in pixels. Training only, required there.
            use_hflip, use_rot (bool): random mirroring, random rotation by 90 degrees. Training only. Default: False.
            check_files (bool): read every file when the dataset is built and name all bad ones at once.
            on_error (str): ``stop`` raises at a bad file; ``skip`` reads every file when the dataset is built, leaves
                bad ones out and lists them in the log. Default: ``stop``.
            min_size (int): smallest allowed side of an input image in pixels. Default: 11, the window of SSIM.
            middle (int): of every image only the middle, at most so many pixels of the ground truth high and wide.
                Not in training. Default: whole images.

    Raises:
        ValueError: an unknown key (named, with the allowed ones) or an impossible value.
        FileNotFoundError: a folder is missing.
        ImageFileError: a folder that is not what ``io_backend`` says, a list that does not belong to it; a bad file, now
            with ``check_files``, else when it is read.
    """

    keys: frozenset[str] = frozenset()  # option keys a subclass adds
    roots: Mapping[str, str] = {"gt": "dataroot_gt"}  # which option holds the folder of which file
    memory: ImageMemory | None = None  # see image_memory.py

    def __init__(self, opt: dict) -> None:
        super().__init__()
        paths = {key: str(Path(value).expanduser()) for key, value in opt.items() if self._is_path(key, value)}
        self.opt = {**opt, **paths}
        self.title = f"data set {opt.get('name', '(unnamed)')!r} ({type(self).__name__})"
        self._check_options()
        self.training = opt.get("phase") == "train"
        self.scale = opt.get("scale", 1)
        self.channels = self._choice("channels", 3, (1, 3))
        self.grey = self._choice("grey", "y", GREY_MODES)
        self.on_error = self._choice("on_error", "stop", ("stop", "skip"))
        self.min_size = opt.get("min_size", 11)
        self.gt_size = self._patch_size() if self.training else None
        self.middle = self._middle_size()
        for flag in ("use_hflip", "use_rot", "check_files"):
            self._choice(flag, False, (True, False))
        backend = self._io_backend()
        self.is_lmdb = backend == "lmdb"
        self.sources = {kind: open_source(self.opt[option], backend) for kind, option in self.roots.items()}
        self.left_out: list[ImageFileError] = []
        self._configure()
        self.items = self._list()
        if opt.get("check_files", False) or self.on_error == "skip":
            self._check_files()
        if not self.items:
            raise ValueError(f"{self.title}: no usable image is left in {opt['dataroot_gt']}")

    # -- options -----------------------------------------------------------------------------------------------

    @classmethod
    def option_keys(cls) -> frozenset[str]:
        """Every key that the options of this class may have."""
        return _LOOP_KEYS | _OWN_KEYS | cls.keys

    def _check_options(self) -> None:
        check_keys(self.title, self.opt, sorted(_LOOP_KEYS | _OWN_KEYS | self.keys))
        for option in self.roots.values():
            if not self.opt.get(option):
                raise ValueError(f"{self.title}: {option} is required")
            if not Path(self.opt[option]).is_dir():
                raise FileNotFoundError(
                    f"{self.opt[option]}: no such folder ({option} of {self.title}); "
                    "python -m qmambair_basicsr.tools.prepare_data makes it"
                )

    def _configure(self) -> None:
        """Read the options a subclass adds, before any file is touched."""

    @staticmethod
    def _is_path(key: str, value: object) -> bool:
        return isinstance(value, str) and key.startswith(("dataroot", "meta_info"))

    def _io_backend(self) -> str:
        """``type`` of ``io_backend``."""
        backend = self.opt.get("io_backend")
        name = "disk" if backend is None else backend.get("type") if isinstance(backend, Mapping) else backend
        if name not in BACKENDS:
            raise ValueError(
                f"{self.title}: io_backend must be {' or '.join(f'{{type: {b}}}' for b in BACKENDS)}, got {backend!r}"
                f"{did_you_mean(name, BACKENDS)}"
            )
        return name

    def _choice(self, key: str, default, allowed: tuple):
        value = self.opt.get(key, default)
        # compared with their types: True equals 1
        if not any(value == choice and type(value) is type(choice) for choice in allowed):
            raise ValueError(f"{self.title}: {key} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        return value

    def _patch_size(self) -> int:
        size = self.opt.get("gt_size")
        if not isinstance(size, int) or size < 1 or size % self.scale:
            raise ValueError(
                f"{self.title}: training needs gt_size, a positive multiple of the scale {self.scale}, got {size!r}"
            )
        return size

    def _middle_size(self) -> int | None:
        size, least = self.opt.get("middle"), self.min_size * self.scale
        if size is None:
            return None
        if self.training:
            raise ValueError(f"{self.title}: middle is for tests; training cuts patches of gt_size anywhere")
        if not isinstance(size, int) or size < least or size % self.scale:
            raise ValueError(
                f"{self.title}: middle must be a multiple of the scale {self.scale} and at least {least}, got {size!r}"
            )
        return size

    # -- files -------------------------------------------------------------------------------------------------

    def _gt_images(self) -> list[str]:
        """Ground-truth paths (LMDB: keys), sorted or in the order of ``meta_info_file``."""
        source, names = self.sources["gt"], self.opt.get("meta_info_file")
        return names_in(names, source.find, self.opt["dataroot_gt"], not self.training) if names else source.images()

    def _list(self) -> list[Item]:
        """Which files make up the samples."""
        return [Item(image) for image in self._gt_images()]

    def _leave_out(self, error: ImageFileError) -> None:
        if self.on_error == "stop":
            raise error
        self.left_out.append(error)

    def _read(self, path: str, kind: str) -> np.ndarray:
        """Read and decode one file.

        Args:
            path: path or LMDB key.
            kind: ``gt`` or ``lq``.

        Returns:
            uint8 (H, W, 1 or 3), as the file has it.

        Raises:
            ImageFileError: naming the file.
        """
        source = self.sources[kind]
        name = source.label(path)

        def read() -> np.ndarray:
            return decode_image(source.read(path), name)

        return read() if self.memory is None else self.memory.get(name, read)

    def _load(self, item: Item) -> tuple[np.ndarray, np.ndarray | None]:
        """Read an item's files, check them and convert them to the wanted channels: ``(gt, lq)``, uint8 (H, W, C)."""
        gt = self._read(item.gt, "gt")
        self._check_size(item, gt)
        return match_channels(gt, self.channels, self.grey), None

    def _check_size(self, item: Item, gt: np.ndarray) -> None:
        least = max(self.min_size * self.scale, self.gt_size or 0)
        if min(gt.shape[:2]) < least:
            why = f"gt_size is {self.gt_size}" if self.training else f"inputs of {self.min_size} pixels"
            raise ImageFileError(
                self.sources["gt"].label(item.gt),
                f"{gt.shape[0]} x {gt.shape[1]} pixels, at least {least} x {least} are needed ({why})",
            )

    def _check_files(self) -> None:
        """Read every file; raise one error that names all bad ones, or leave them out."""

        def problem(item: Item) -> ImageFileError | None:
            try:
                self._load(item)
            except ImageFileError as err:
                return err
            return None

        with ThreadPoolExecutor(1 if self.is_lmdb else 8) as pool:  # decoding releases the interpreter lock
            problems = list(pool.map(problem, self.items))
        bad = [err for err in problems if err is not None]
        logger = get_root_logger()
        if bad and self.on_error == "stop":
            raise bad[0] if len(bad) == 1 else ImageFileError(self.title, self._listing(bad))
        self.left_out.extend(bad)
        self.items = [item for item, err in zip(self.items, problems, strict=True) if err is None]
        if self.left_out:
            logger.warning("%s: %s", self.title, self._listing(self.left_out))
        logger.info("%s: %d samples checked, %d left out", self.title, len(problems), len(bad))

    @staticmethod
    def _listing(bad: list[ImageFileError]) -> str:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        return f"{len(bad)} bad files:" + "".join(f"\n  {err}" for err in bad[:_SHOWN]) + more

    # -- samples -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        item = self.items[index]
        gt, lq = self._load(item)
        if self.middle is not None:
            gt, lq = self._middle_of(gt, lq)
        # a generator of its own per sample, drawn from torch's state: fresh in every epoch and worker process
        rng = np.random.default_rng(torch.randint(1 << 62, ()).item()) if self.training else None
        gt, lq = self._pair(gt, lq, rng)
        return {
            "lq": image_tensor(lq),
            "gt": image_tensor(gt),
            "lq_path": self._result_path(item),
            "gt_path": self.sources["gt"].result_path(item.gt),
        }

    def _middle_of(self, gt: np.ndarray, lq: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The middles of both, of the same place; images that are smaller stay whole."""
        corners = [max(0, (n - self.middle) // 2) // self.scale for n in gt.shape[:2]]

        def cut(img: np.ndarray, factor: int) -> np.ndarray:
            top, left = (corner * factor for corner in corners)
            side = self.middle // self.scale * factor
            return img[top : top + side, left : left + side]

        return cut(gt, self.scale), None if lq is None else cut(lq, 1)

    def result_paths(self) -> list[str]:
        """``lq_path`` of every sample, after which results are named."""
        return [self._result_path(item) for item in self.items]

    def _result_path(self, item: Item) -> str:
        kind, image = ("gt", item.gt) if item.lq is None else ("lq", item.lq)
        return self.sources[kind].result_path(image)

    def _pair(
        self, gt: np.ndarray, lq: np.ndarray | None, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Crop, augment and degrade.

        Args:
            gt: uint8 (H, W, C), BGR or grey.
            lq: likewise, or None where this method makes it.
            rng: the sample's generator; None outside training, where nothing may be random.

        Returns:
            ``(gt, lq)``, uint8 or float in [0, 1].
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to make a pair")

    def _crop_and_turn(self, rng: np.random.Generator, size: int, *images: np.ndarray) -> list[np.ndarray]:
        """The same random patch of all images, randomly mirrored and rotated.

        Args:
            rng: generator of the sample.
            size: side of the patch in pixels of the last image.
            *images: (H, W, C) arrays whose sizes are multiples of the last one's.

        Returns:
            The patches, side ``size`` times each image's multiple.
        """
        last = images[-1]
        top, left = (int(rng.integers(n - size + 1)) for n in last.shape[:2])
        mirror = self.opt.get("use_hflip", False) and rng.random() < 0.5
        turns = int(rng.integers(4)) if self.opt.get("use_rot", False) else 0
        out = []
        for img in images:
            k = img.shape[0] // last.shape[0]
            patch = img[top * k : (top + size) * k, left * k : (left + size) * k]
            patch = patch[:, ::-1] if mirror else patch
            out.append(np.rot90(patch, turns))
        return out
